"""``mbs report``: a sweep as one HTML page that needs nothing else: no server, no network, no script."""

import base64
import io
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path

import jinja2
from matplotlib.figure import Figure

from mbs_ray.errors import InputError
from mbs_ray.evaluation.metric_names import SUMMARIES
from mbs_ray.evaluation.paired_tasks import ALL
from mbs_ray.files import appearing
from mbs_ray.report.figures.canvas import write_png
from mbs_ray.report.figures.experts_heatmap import experts_heatmap
from mbs_ray.report.figures.loss_curves import loss_curves
from mbs_ray.report.figures.size_scatter import size_scatter
from mbs_ray.report.page_tables import (
    allocations,
    amounts_grid,
    by_text,
    layer_error_grid,
    overall,
    overall_of_seeds,
    scored,
)
from mbs_ray.report.run_results import RunResults, SweepRuns, read_sweep
from mbs_ray.report.seed_groups import seed_groups
from mbs_ray.report.size_tables import sizes
from mbs_ray.report.starved_experts import StarvedExperts, starved_experts
from mbs_ray.report.task_tables import task_tables

FILE = "report.html"


def write_report_page(folder: Path, out: Path | None = None) -> Path:
    """Write the page of a sweep's folder, whole or not at all; ``report.html`` in it by default.

    Raises :class:`InputError` where the folder is not that of a sweep, or ``out`` cannot be written.
    """
    page = render(read_sweep(folder))
    path = out or folder / FILE
    try:
        with appearing(path) as unfinished:
            unfinished.write_text(page, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from error
    return path


def render(report: SweepRuns) -> str:
    """Render the page in HTML. Everything that comes from the sweep is escaped."""
    loader = jinja2.PackageLoader("mbs_ray.report")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals["summaries"] = (*SUMMARIES, ALL)
    runs = report.runs
    finished = [run for run in runs if run.metrics is not None]
    return environment.get_template("report.html.jinja").render(
        name=report.name,
        summary=_summary(runs),
        finished=len(finished),
        runs=[(run, *overall(run)) for run in runs],
        seeds=[(group, *overall_of_seeds(group)) for group in seed_groups(runs)],
        scored=[scored(name, own) for name, own in by_text(finished)],
        sizes=[(model, own, _size_figure([run for run, _ in own])) for model, own in sizes(runs)],
        tasks=task_tables(finished),
        allocations=allocations(runs),
        losses=_losses(runs),
        layer_errors=[(run.facts.label, layer_error_grid(run)) for run in runs if run.layer_errors],
        experts=_experts(runs),
        amounts=[(run.facts.label, run.amount, amounts_grid(run)) for run in runs if run.amounts],
        timeline=None if report.timeline is None else _data_uri(report.timeline),
        environment=_environment(report),
        fingerprints=_fingerprints(runs),
    )


def _summary(runs: Sequence[RunResults]) -> str:
    lengths = dict.fromkeys(f"{run.facts.segments:,} segments of {run.facts.sequence_length:,} tokens" for run in runs)
    counts = [
        (len(set(values)), what)
        for values, what in (
            ([run.facts.model for run in runs], "model"),
            ([run.facts.method for run in runs], "method"),
            ([run.facts.sampling for run in runs], "sampling"),
            ([run.facts.seed for run in runs], "seed"),
            ([code for run in runs for code in run.facts.languages], "language"),
        )
    ]
    times = [time for run in runs for time in (run.began, run.ended) if time is not None]
    span = f"; {_date(min(times))} to {_date(max(times))} UTC" if times else ""
    named = ", ".join(f"{count} {what}{'s' if count > 1 else ''}" for count, what in counts)
    return f"{len(runs)} run{'s' if len(runs) > 1 else ''}: {named}; {' or '.join(lengths)} of calibration text{span}."


def _date(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%d %H:%M")


def _losses(runs: Sequence[RunResults]) -> list[tuple[str, str]]:
    """Draw a figure of the losses for each model: (model, the figure as a data URI)."""
    figures = []
    for model, own in groupby((run for run in runs if run.losses), key=lambda run: run.facts.model):
        figures.append((model, _figure_uri(loss_curves(list(own)))))
    return figures


def _size_figure(runs: Sequence[RunResults]) -> str | None:
    figure = size_scatter(runs)
    return None if figure is None else _figure_uri(figure)


def _experts(runs: Sequence[RunResults]) -> list[tuple[str, str | None, list[StarvedExperts]]]:
    """List the starved experts of each run, with a figure for the first run of each calibration set of a model."""
    shown: set[tuple[str, str]] = set()
    found: list[tuple[str, str | None, list[StarvedExperts]]] = []
    for run in runs:
        if run.experts is None:
            continue
        text = run.facts.fingerprints["model"], run.facts.fingerprints["calibration"]
        figure = None if text in shown else _figure_uri(experts_heatmap(run.experts, ""))
        shown.add(text)
        found.append((run.facts.label, figure, starved_experts(run.experts)))
    return [one for one in found if one[1] is not None or one[2]]


def _environment(report: SweepRuns) -> list[tuple[str, str]]:
    """List what the runs were made with; values in which they differ are all named."""
    facts: dict[str, dict[str, None]] = {}
    for run in report.runs:
        for key, value in {**run.facts.versions, **run.facts.resolved}.items():
            facts.setdefault(key, {})[str(value)] = None
    return [(key, str(value)) for key, value in report.layout.items()] + [
        (key, ", ".join(values)) for key, values in facts.items()
    ]


def _fingerprints(runs: Sequence[RunResults]) -> list[tuple[str, str]]:
    """List the fingerprints of models, calibration sets and evaluation sets, each once, with the models of a text."""
    models = {run.facts.fingerprints["model"]: f"model {run.facts.model}" for run in runs}
    texts: dict[str, tuple[str, dict[str, None]]] = {}
    for run in runs:
        size = f"{run.facts.segments:,} × {run.facts.sequence_length:,}, seed {run.facts.seed}"
        own = {run.facts.fingerprints["calibration"]: f"calibration {run.facts.sampling}, {size}"}
        own |= {fingerprint: f"evaluation {name}" for name, fingerprint in run.evaluation.items()}
        for fingerprint, what in own.items():
            texts.setdefault(fingerprint, (what, {}))[1][run.facts.model] = None
    # Sorted by what they are; those of calibration and evaluation in the order of the runs.
    shown = [(f"{what}, for {', '.join(of)}", fingerprint) for fingerprint, (what, of) in texts.items()]
    shown.sort(key=lambda fact: fact[0].partition(" ")[0])
    return [*((what, fingerprint) for fingerprint, what in models.items()), *shown]


def _figure_uri(figure: Figure) -> str:
    content = io.BytesIO()
    write_png(figure, content, dpi=130)
    return _data_uri(content.getvalue())


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
