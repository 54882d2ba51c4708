"""The tables of the report page: languages × runs, with the shade of every cell."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from mbs_ray.evaluation.intervals import interval_text
from mbs_ray.evaluation.metric_names import (
    GEOMEAN,
    INCREASE,
    PERPLEXITY,
    SCORED_DOCUMENTS,
    SCORED_TOKENS,
    SUMMARIES,
    UNKNOWN_SHARE,
    WORST,
    Family,
    MetricNames,
)
from mbs_ray.evaluation.perplexity import stored_interval
from mbs_ray.evaluation.text_warnings import unknown_warning
from mbs_ray.languages.codes import language_name
from mbs_ray.languages.facts import table_order
from mbs_ray.languages.groups import GROUP_WORDS
from mbs_ray.report.run_results import RunResults
from mbs_ray.report.seed_groups import SeedGroup, seed_groups

_FULL_HEAT = 1.1  # the least increase that is drawn in the strongest colour, so that noise around 1 stays pale


@dataclass(frozen=True)
class Cell:
    """A number of a table as shown and in full; ``heat`` from 0 to 1, None where it has no colour.

    ``mark`` is a word beside the number.
    """

    value: float | None
    text: str = "–"
    interval: str = ""
    best: bool = False
    heat: float | None = None
    mark: str = ""


@dataclass(frozen=True)
class Grid:
    """A table: methods with the number of their columns, (title, short name) of each column, rows of cells."""

    methods: list[tuple[str, int]]
    columns: list[tuple[str, str]]
    rows: list[tuple[str, str, list[Cell]]]


def overall(run: RunResults) -> tuple[Cell, Cell, str]:
    """Return mean and worst increase on the first set, and the code of the worst language."""
    names = MetricNames()
    increases = names.rows(INCREASE, run.metrics or {})
    languages = {code: value for code, value in increases.items() if code not in SUMMARIES}
    if not languages:
        return Cell(None), Cell(None), ""
    worst = max(languages, key=languages.__getitem__)
    mean, highest = (_cell(run.metrics or {}, names, INCREASE, row) for row in (GEOMEAN, WORST))
    return mean, highest, worst


def overall_of_seeds(group: SeedGroup) -> tuple[Cell, Cell]:
    """Return mean and spread over seeds of the mean and worst increase on the first set."""
    mean, worst = (_seed_cell(group, MetricNames().increase(row)) for row in (GEOMEAN, WORST))
    return mean, worst


def by_text(runs: Iterable[RunResults]) -> list[tuple[str, list[RunResults]]]:
    """Group runs whose perplexities compare: of one model, on one evaluation set, on the same text of it."""
    groups: dict[tuple[str, str, str, str], list[RunResults]] = {}
    for run in runs:
        for name, text in run.evaluation.items():
            groups.setdefault((run.facts.model, run.facts.fingerprints["model"], name, text), []).append(run)
    return [(key[2], own) for key, own in groups.items()]


def scored(name: str, runs: Sequence[RunResults]) -> dict[str, Any]:
    """Make both tables of one model on one evaluation set, and count its tokens and documents."""
    codes = table_order({code for run in runs for code in run.dense[name]})
    dense = {code: value for run in runs for code, value in run.dense[name].items()}
    first = runs[0]
    counted = {
        what: sum(first.names(name).rows(family, first.metrics or {}).values())
        for what, family in (("tokens", SCORED_TOKENS), ("documents", SCORED_DOCUMENTS))
    }
    return {
        "name": name,
        "model": first.facts.model,
        "counted": counted,
        "unknown": unknown_warning(first.names(name).rows(UNKNOWN_SHARE, first.metrics or {})),
        "perplexity": _grid(runs, name, PERPLEXITY, codes, dense),
        "increase": _grid(runs, name, INCREASE, [*codes, *_summaries(runs, name)], None),
        "seeds": _seed_grid(seed_groups(runs), name, [*codes, *_summaries(runs, name)]),
    }


def _summaries(runs: Sequence[RunResults], name: str) -> list[str]:
    """List the summaries of an increase that any of the runs has."""
    known = {row for run in runs for row in run.names(name).rows(INCREASE, run.metrics or {})}
    return [row for row in SUMMARIES if row in known]


def _grid(
    runs: Sequence[RunResults], name: str, family: Family, rows: Iterable[str], dense: Mapping[str, float] | None
) -> Grid:
    """Make a table of rows × runs; where ``dense`` is given it is the first column."""
    values = {row: [_cell(run.metrics or {}, run.names(name), family, row) for run in runs] for row in rows}
    known = [one.value for own in values.values() for one in own if one.value is not None]
    hottest = max([_FULL_HEAT, *filter(math.isfinite, known)])
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
    groups = [(method, len(list(own))) for method, own in groupby(run.facts.method for run in runs)]
    columns = [(run.facts.label, run.short_name) for run in runs]
    if dense is not None:
        groups, columns = [("", 1), *groups], [("the dense model", "dense"), *columns]
    return Grid(groups, columns, shown)


def _seed_grid(groups: Sequence[SeedGroup], name: str, rows: Iterable[str]) -> Grid | None:
    """Make a table of increases, rows × groups of seeds; None where no runs differ by their seed alone."""
    if not groups:
        return None
    values = {row: [_seed_cell(group, group.runs[0].names(name).increase(row)) for group in groups] for row in rows}
    known = [one.value for own in values.values() for one in own if one.value is not None]
    hottest = max([_FULL_HEAT, *filter(math.isfinite, known)])
    shown = []
    for row, own in values.items():
        lowest = min((one.value for one in own if one.value is not None), default=math.nan)
        cells = [
            replace(one, best=one.value == lowest and len(own) > 1, heat=_heat(one.value, 1.0, hottest))
            if one.value is not None
            else one
            for one in own
        ]
        shown.append((row, _language(row), cells))
    methods = [(method, len(list(own))) for method, own in groupby(group.runs[0].facts.method for group in groups)]
    columns = [
        (f"{group.name}, seeds {', '.join(map(str, group.seeds))}", f"{group.short_name} ({len(group.runs)} seeds)")
        for group in groups
    ]
    return Grid(methods, columns, shown)


def _seed_cell(group: SeedGroup, metric: str) -> Cell:
    one = group.means.get(metric)
    return Cell(None) if one is None else Cell(one.mean, format(one.mean, _form(one.mean)), one.spread_text)


def _cell(metrics: Mapping[str, float], names: MetricNames, family: Family, row: str) -> Cell:
    value = metrics.get(names.metric(family, row))
    if value is None:
        return Cell(None)
    form = _form(value)
    return Cell(value, format(value, form), interval_text(stored_interval(metrics, names, family, row), form))


def _form(value: float) -> str:
    """Choose a format that shows at least four digits."""
    return ".3f" if value < 10 else ".2f" if value < 100 else ".1f"


def layer_error_grid(run: RunResults) -> Grid:
    """Make a table of languages × blocks; the colours of a run span its own errors, on a logarithmic scale."""
    blocks = sorted({block for errors in run.layer_errors.values() for block in errors})
    known = [value for errors in run.layer_errors.values() for value in errors.values() if value > 0]
    low, high = min(known, default=1.0), max(known, default=1.0)
    rows = []
    for code in table_order(run.layer_errors):
        errors = [run.layer_errors[code].get(block) for block in blocks]
        cells = [Cell(None) if e is None else Cell(e, f"{e:.2g}", heat=_heat(e, low, high)) for e in errors]
        rows.append((code, _language(code), cells))
    return Grid([], [(f"block {block}", str(block)) for block in blocks], rows)


def amounts_grid(run: RunResults) -> Grid:
    """Make a table of linears × blocks of what each was given; the darker, the more of it is taken away."""
    blocks = sorted(run.amounts)
    values = [value for own in run.amounts.values() for value in own.values()]
    low, high = min(values), max(values)

    def cell(value: float | None) -> Cell:
        if value is None:
            return Cell(None)
        place = (value - low) / (high - low) if high > low else 0.0
        return Cell(value, f"{value:.3g}", heat=1 - place if run.amount == "bits" else place)

    names = dict.fromkeys(name for own in run.amounts.values() for name in own)
    rows = [(name, "", [cell(run.amounts[block].get(name)) for block in blocks]) for name in names]
    return Grid([], [(f"block {block}", str(block)) for block in blocks], rows)


def _heat(value: float, low: float, high: float) -> float:
    """Where a value lies between two others on a logarithmic scale; 0 at ``low`` and below."""
    if math.isinf(value):
        return 1.0
    if math.isnan(value) or value <= low or high <= low:
        return 0.0
    return min(math.log(value / low) / math.log(high / low), 1.0)


def _language(code: str) -> str:
    names = {GEOMEAN: "of the languages", WORST: "language", **GROUP_WORDS}
    return names[code] if code in names else language_name(code)


def allocations(runs: Sequence[RunResults]) -> list[dict[str, Any]]:
    """Make tables of segments by sampling and language, and with dense statistics of the weights of languages."""
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
    """Arrange values by sampling and language, each distinct allocation once, with the lengths of bars in percent."""
    distinct: dict[tuple[tuple[str, float], ...], str] = {}
    for run, values in ((run, values) for run, values in runs if values):
        key = tuple(sorted(values.items()))
        if key not in distinct:
            taken = run.facts.sampling in distinct.values()
            distinct[key] = f"{run.facts.sampling} ({run.facts.label})" if taken else run.facts.sampling
    allocations = {name: dict(key) for key, name in distinct.items()}
    codes = table_order({code for run, values in runs for code in (*run.facts.languages, *values)})
    most = max((value for values in allocations.values() for value in values.values()), default=1)
    rows = []
    for code in codes:
        own = [values.get(code, 0) for values in allocations.values()]
        rows.append((code, _language(code), [(value, shown(value), 100 * value / most) for value in own]))
    samplings = {name: shown(sum(values.values())) for name, values in allocations.items()}
    return {"samplings": samplings, "rows": rows}
