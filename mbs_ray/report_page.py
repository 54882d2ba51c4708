"""``mbs report``: a sweep as one HTML page that needs nothing else: no server, no network, no script."""

import base64
import io
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any

import jinja2
from matplotlib.figure import Figure

from mbs_ray.errors import InputError
from mbs_ray.evaluation.perplexity import stored_interval
from mbs_ray.evaluation.report import SUMMARIES
from mbs_ray.languages import LANGUAGES, table_order
from mbs_ray.loss_plot import loss_curves
from mbs_ray.sweep_report import ReportedRun, SweepReport, read_sweep
from mbs_ray.tables import interval_text

FILE = "report.html"
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


def write_report(folder: Path, out: Path | None = None) -> Path:
    """Write the page of a sweep's folder, whole or not at all; ``report.html`` in it by default.

    Raises :class:`InputError` where the folder is not that of a sweep, or ``out`` cannot be written.
    """
    page = render(read_sweep(folder))
    path = out or folder / FILE
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(page, encoding="utf-8")
        return partial.replace(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from error
    finally:
        with suppress(OSError):
            partial.unlink()


def render(report: SweepReport) -> str:
    """The page in HTML. Everything that comes from the sweep is escaped."""
    loader = jinja2.PackageLoader("mbs_ray")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    runs = report.runs
    finished = [run for run in runs if run.metrics is not None]
    return environment.get_template("report.html.jinja").render(
        name=report.name,
        summary=_summary(runs),
        finished=len(finished),
        runs=[(run, *_overall(run)) for run in runs],
        scored=[_scored(name, own) for name, own in _by_text(finished)],
        allocations=_allocations(runs),
        losses=_losses(runs),
        layer_errors=[(run.label, _layer_error_grid(run)) for run in runs if run.layer_errors],
        timeline=None if report.timeline is None else _data_uri(report.timeline),
        environment=_environment(report),
        fingerprints=_fingerprints(runs),
    )


def _summary(runs: Sequence[ReportedRun]) -> str:
    lengths = dict.fromkeys(f"{run.segments:,} segments of {run.sequence_length:,} tokens" for run in runs)
    counts = [
        (len(set(values)), what)
        for values, what in (
            ([run.model for run in runs], "model"),
            ([run.method for run in runs], "method"),
            ([run.sampling for run in runs], "sampling"),
            ([run.seed for run in runs], "seed"),
            ([code for run in runs for code in run.languages], "language"),
        )
    ]
    times = [time for run in runs for time in (run.began, run.ended) if time is not None]
    span = f"; {_date(min(times))} to {_date(max(times))} UTC" if times else ""
    named = ", ".join(f"{count} {what}{'s' if count > 1 else ''}" for count, what in counts)
    return f"{len(runs)} run{'s' if len(runs) > 1 else ''}: {named}; {' or '.join(lengths)} of calibration text{span}."


def _date(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%d %H:%M")


def _overall(run: ReportedRun) -> tuple[Cell, Cell, str]:
    """Mean and worst increase on the first set, and the name of the worst language."""
    increases = {} if run.metrics is None else _under(run.metrics, "ppl_increase/")
    languages = {code: value for code, value in increases.items() if code not in SUMMARIES}
    if not languages:
        return Cell(None), Cell(None), ""
    worst = max(languages, key=languages.__getitem__)
    mean = _cell(run.metrics or {}, "ppl_increase/geomean")
    return mean, _cell(run.metrics or {}, "ppl_increase/worst"), worst


def _by_text(runs: Iterable[ReportedRun]) -> list[tuple[str, list[ReportedRun]]]:
    """Runs whose perplexities compare: of one model, on one evaluation set, on the same text of it."""
    groups: dict[tuple[str, str, str, str], list[ReportedRun]] = {}
    for run in runs:
        for name, text in run.evaluation.items():
            groups.setdefault((run.model, run.fingerprints["model"], name, text), []).append(run)
    return [(key[2], own) for key, own in groups.items()]


def _scored(name: str, runs: Sequence[ReportedRun]) -> dict[str, Any]:
    """Both tables of one model on one evaluation set, and how much text that was."""
    codes = table_order({code for run in runs for code in run.dense[name]})
    dense = {code: value for run in runs for code, value in run.dense[name].items()}
    first = runs[0]
    counted = {
        what: sum(_under(first.metrics or {}, f"scored_{what}{first.tail(name)}/").values())
        for what in ("tokens", "documents")
    }
    perplexity = _grid(runs, name, "ppl", codes, dense)
    increase = _grid(runs, name, "ppl_increase", [*codes, *SUMMARIES], None)
    return {"name": name, "model": first.model, "counted": counted, "perplexity": perplexity, "increase": increase}


def _grid(
    runs: Sequence[ReportedRun], name: str, metric: str, rows: Iterable[str], dense: Mapping[str, float] | None
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


def _layer_error_grid(run: ReportedRun) -> Grid:
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


def _short(run: ReportedRun) -> str:
    """What tells a run from the others of its model and method: its label without both."""
    model, method = (re.sub(r"[^A-Za-z0-9._-]", "-", name) for name in (run.model, run.method))
    return run.label.removeprefix(f"{model}-").removeprefix(f"{method}-")


def _language(code: str) -> str:
    names = {"geomean": "of the languages", "worst": "language"}
    return LANGUAGES[code].name if code in LANGUAGES else names.get(code, "")


def _allocations(runs: Sequence[ReportedRun]) -> list[dict[str, Any]]:
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


def _bars(runs: Sequence[tuple[ReportedRun, Mapping[str, float]]], shown: Callable[[float], str]) -> dict[str, Any]:
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


def _losses(runs: Sequence[ReportedRun]) -> list[tuple[str, str]]:
    """A figure of the losses for each model: (model, the figure as an address of its own content)."""
    figures = []
    for model, own in groupby((run for run in runs if run.losses), key=lambda run: run.model):
        figures.append((model, _figure_uri(loss_curves(list(own)))))
    return figures


def _environment(report: SweepReport) -> list[tuple[str, str]]:
    """What the runs were made with; values in which they differ are all named."""
    facts: dict[str, dict[str, None]] = {}
    for run in report.runs:
        for key, value in {**run.versions, **run.resolved}.items():
            facts.setdefault(key, {})[str(value)] = None
    return [(key, str(value)) for key, value in report.layout.items()] + [
        (key, ", ".join(values)) for key, values in facts.items()
    ]


def _fingerprints(runs: Sequence[ReportedRun]) -> list[tuple[str, str]]:
    """Of models, calibration sets and evaluation sets, each once, with the models that share a text."""
    models = {run.fingerprints["model"]: f"model {run.model}" for run in runs}
    texts: dict[str, tuple[str, dict[str, None]]] = {}
    for run in runs:
        size = f"{run.segments:,} × {run.sequence_length:,}, seed {run.seed}"
        own = {run.fingerprints["calibration"]: f"calibration {run.sampling}, {size}"}
        own |= {fingerprint: f"evaluation {name}" for name, fingerprint in run.evaluation.items()}
        for fingerprint, what in own.items():
            texts.setdefault(fingerprint, (what, {}))[1][run.model] = None
    # Sorted by what they are; those of calibration and evaluation in the order of the runs.
    shown = [(f"{what}, for {', '.join(of)}", fingerprint) for fingerprint, (what, of) in texts.items()]
    shown.sort(key=lambda fact: fact[0].partition(" ")[0])
    return [*((what, fingerprint) for fingerprint, what in models.items()), *shown]


def _under(metrics: Mapping[str, float], prefix: str) -> dict[str, float]:
    return {key.removeprefix(prefix): value for key, value in metrics.items() if key.startswith(prefix)}


def _figure_uri(figure: Figure) -> str:
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=130, metadata={"Software": None})
    return _data_uri(content.getvalue())


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
