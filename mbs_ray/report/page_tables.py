"""The tables of the report page: languages × runs, with the shade of every cell."""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from mbs_ray.evaluation.intervals import interval_text
from mbs_ray.evaluation.perplexity import stored_interval
from mbs_ray.evaluation.text_warnings import stored_unknown, unknown_warning
from mbs_ray.languages.facts import LANGUAGES, table_order
from mbs_ray.report.increase_table import SUMMARIES
from mbs_ray.report.run_results import RunResults

_FULL_HEAT = 1.1  # the least increase that is drawn in the strongest colour, so that noise around 1 stays pale


@dataclass(frozen=True)
class Cell:
    """A number of a table as shown and in full; ``heat`` from 0 to 1, None where it has no colour."""

    value: float | None
    text: str = "–"
    interval: str = ""
    best: bool = False
    heat: float | None = None


@dataclass(frozen=True)
class Grid:
    """A table: methods with the number of their columns, (title, short name) of each column, rows of cells."""

    methods: list[tuple[str, int]]
    columns: list[tuple[str, str]]
    rows: list[tuple[str, str, list[Cell]]]


def overall(run: RunResults) -> tuple[Cell, Cell, str]:
    """Mean and worst increase on the first set, and the name of the worst language."""
    increases = {} if run.metrics is None else _under(run.metrics, "ppl_increase/")
    languages = {code: value for code, value in increases.items() if code not in SUMMARIES}
    if not languages:
        return Cell(None), Cell(None), ""
    worst = max(languages, key=languages.__getitem__)
    mean = _cell(run.metrics or {}, "ppl_increase/geomean")
    return mean, _cell(run.metrics or {}, "ppl_increase/worst"), worst


def by_text(runs: Iterable[RunResults]) -> list[tuple[str, list[RunResults]]]:
    """Runs whose perplexities compare: of one model, on one evaluation set, on the same text of it."""
    groups: dict[tuple[str, str, str, str], list[RunResults]] = {}
    for run in runs:
        for name, text in run.evaluation.items():
            groups.setdefault((run.model, run.fingerprints["model"], name, text), []).append(run)
    return [(key[2], own) for key, own in groups.items()]


def scored(name: str, runs: Sequence[RunResults]) -> dict[str, Any]:
    """Both tables of one model on one evaluation set, and how much text that was."""
    codes = table_order({code for run in runs for code in run.dense[name]})
    dense = {code: value for run in runs for code, value in run.dense[name].items()}
    first = runs[0]
    counted = {
        what: sum(_under(first.metrics or {}, f"scored_{what}{first.tail(name)}/").values())
        for what in ("tokens", "documents")
    }
    unknown = unknown_warning(stored_unknown(first.metrics or {}, first.tail(name)))
    perplexity = _grid(runs, name, "ppl", codes, dense)
    increase = _grid(runs, name, "ppl_increase", [*codes, *SUMMARIES], None)
    return {
        "name": name, "model": first.model, "counted": counted, "unknown": unknown, "perplexity": perplexity,
        "increase": increase,
    }  # fmt: skip


def _grid(
    runs: Sequence[RunResults], name: str, metric: str, rows: Iterable[str], dense: Mapping[str, float] | None
) -> Grid:
    """Rows × runs; where ``dense`` is given it is the first column."""
    values = {row: [_cell(run.metrics or {}, f"{metric}{run.tail(name)}/{row}") for run in runs] for row in rows}
    hottest = max([_FULL_HEAT, *(one.value for own in values.values() for one in own if one.value is not None)])
    shown = []
    for row, own in values.items():
        lowest = min((one.value for one in own if one.value is not None), default=math.nan)
        cells = [
            Cell(
                one.value,
                one.text,
                one.interval,
                one.value == lowest and len(own) > 1,
                None if dense is not None or one.value is None else _heat(one.value, 1.0, hottest),
            )
            for one in own
        ]
        if dense is not None:
            cells = [Cell(dense[row], format(dense[row], _form(dense[row]))), *cells]
        shown.append((row, _language(row), cells))
    groups = [(method, len(list(own))) for method, own in groupby(run.method for run in runs)]
    columns = [(run.label, _short(run)) for run in runs]
    if dense is not None:
        groups, columns = [("", 1), *groups], [("the dense model", "dense"), *columns]
    return Grid(groups, columns, shown)


def _cell(metrics: Mapping[str, float], metric: str) -> Cell:
    value = metrics.get(metric)
    if value is None:
        return Cell(None)
    form = _form(value)
    return Cell(value, format(value, form), interval_text(stored_interval(metrics, metric), form))


def _form(value: float) -> str:
    """At least four digits."""
    return ".3f" if value < 10 else ".2f" if value < 100 else ".1f"


def layer_error_grid(run: RunResults) -> Grid:
    """Languages × blocks; the colours of a run span its own errors, on a logarithmic scale."""
    blocks = sorted({block for errors in run.layer_errors.values() for block in errors})
    known = [value for errors in run.layer_errors.values() for value in errors.values() if value > 0]
    low, high = min(known, default=1.0), max(known, default=1.0)
    rows = []
    for code in table_order(run.layer_errors):
        errors = [run.layer_errors[code].get(block) for block in blocks]
        cells = [Cell(None) if e is None else Cell(e, f"{e:.2g}", heat=_heat(e, low, high)) for e in errors]
        rows.append((code, _language(code), cells))
    return Grid([], [(f"block {block}", str(block)) for block in blocks], rows)


def _heat(value: float, low: float, high: float) -> float:
    """Where a value lies between two others on a logarithmic scale; 0 at ``low`` and below."""
    if value <= low or high <= low:
        return 0.0
    return min(math.log(value / low) / math.log(high / low), 1.0)


def _short(run: RunResults) -> str:
    """What tells a run from the others of its model and method: its label without both."""
    model, method = (re.sub(r"[^A-Za-z0-9._-]", "-", name) for name in (run.model, run.method))
    return run.label.removeprefix(f"{model}-").removeprefix(f"{method}-")


def _language(code: str) -> str:
    names = {"geomean": "of the languages", "worst": "language"}
    return LANGUAGES[code].name if code in LANGUAGES else names.get(code, "")


def allocations(runs: Sequence[RunResults]) -> list[dict[str, Any]]:
    """Segments by sampling and language, and with dense statistics the weights of languages."""
    propagated, dense = [run for run in runs if not run.weights], [run for run in runs if run.weights]
    tables = []
    if propagated or not dense:
        counts = [(run, run.allocation) for run in propagated]
        tables.append({"title": "Calibration segments by language", **_bars(counts, lambda count: f"{count:.0f}")})
    if dense:
        weights = [(run, run.weights) for run in dense]
        title = "Weights of the languages in dense statistics"
        tables.append({"title": title, **_bars(weights, lambda weight: f"{100 * weight:.3g} %")})
    return tables


def _bars(runs: Sequence[tuple[RunResults, Mapping[str, float]]], shown: Callable[[float], str]) -> dict[str, Any]:
    """By sampling and language, each distinct allocation once, with the length of its bar in percent."""
    distinct: dict[tuple[tuple[str, float], ...], str] = {}
    for run, values in ((run, values) for run, values in runs if values):
        key = tuple(sorted(values.items()))
        if key not in distinct:
            taken = run.sampling in distinct.values()
            distinct[key] = f"{run.sampling} ({run.label})" if taken else run.sampling
    allocations = {name: dict(key) for key, name in distinct.items()}
    codes = table_order({code for run, values in runs for code in (*run.languages, *values)})
    most = max((value for values in allocations.values() for value in values.values()), default=1)
    rows = []
    for code in codes:
        own = [values.get(code, 0) for values in allocations.values()]
        rows.append((code, _language(code), [(value, shown(value), 100 * value / most) for value in own]))
    samplings = {name: shown(sum(values.values())) for name, values in allocations.items()}
    return {"samplings": samplings, "rows": rows}


def _under(metrics: Mapping[str, float], prefix: str) -> dict[str, float]:
    return {key.removeprefix(prefix): value for key, value in metrics.items() if key.startswith(prefix)}
