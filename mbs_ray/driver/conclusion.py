"""The results of a sweep for people: tables, figures, and a note on the parent run."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from mbs_ray.driver.sweep_jobs import SweepJobs
from mbs_ray.errors import InputError
from mbs_ray.evaluation.metric_names import INCREASE, SUMMARIES, MetricNames
from mbs_ray.files import appearing, short_name
from mbs_ray.report.figures.allocation_bars import allocation_bars
from mbs_ray.report.figures.canvas import save_figure
from mbs_ray.report.figures.increase_heatmap import increase_heatmap
from mbs_ray.report.increase_table import SeedSpread, increase_table, mean_over, to_markdown
from mbs_ray.run.prepare import PreparedRun
from mbs_ray.tracking.tracked_run import TrackedRun

_AGAIN = "the same command again"
#: Bytes of a file's name: beside it stands, while it is written, one with a few more.
_LONGEST = 200


@dataclass
class SweepResult:
    """The results of a finished sweep.

    ``tables`` hold the perplexity increase, languages × (method, sampling) averaged over seeds,
    by ``<model>-<evaluation set>``, ``spreads`` the spread of those in which a column has several seeds; ``failed``
    the reasons of runs that failed.
    """

    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    spreads: dict[str, SeedSpread] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    figures: list[Path] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    tracking_uri: str = ""


@contextmanager
def warned_if_unwritten(what: str, say: Callable[[str], None], mend: str = "") -> Iterator[None]:
    """Warn that a file for people could not be written, and say how to write it later; the runs count as finished."""
    try:
        yield
    except Exception as error:  # whatever it is, it is no reason to call finished runs failed
        reason = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
        say(f"{what} was not written: {reason}" + (f"; once that is mended: {mend}" if mend else ""))


def write_tables(
    runs: Sequence[PreparedRun],
    metrics: Mapping[str, Mapping[str, float]],
    jobs: SweepJobs,
    parent: TrackedRun,
    result: SweepResult,
    say: Callable[[str], None],
) -> None:
    """Add tables and figures of the finished ``runs`` to the result, and give them to the parent run."""
    notes = []
    for (model, text), name, own in _by_text(runs):
        title = f"{model}-{text}"
        by_run = increase_table({run.label: _increases(run, name, metrics[run.label]) for run in own})
        columns = {run.label: run.column for run in own}
        table, spread = mean_over(by_run, columns), SeedSpread.over(by_run, columns)
        result.tables[title] = table
        if spread is not None:
            result.spreads[title] = spread
        path = jobs.folders.sweep / short_name(f"increase-{title}", ".csv", _LONGEST)
        with warned_if_unwritten(path.name, say, _AGAIN):
            with appearing(path) as unfinished:
                by_run.to_csv(unfinished, index_label="language")
            result.files.append(path)
            parent.artifact(path)
        with warned_if_unwritten(f"increase-{title}.png", say, _AGAIN):
            figure = increase_heatmap(table, f"Perplexity increase over the dense model: {model}, {text}", spread)
            _keep(figure, f"increase-{title}", jobs, parent, result)
        shown = to_markdown(_summaries_first(table), spread=spread)
        notes.append(f"**Perplexity increase over dense: {model}, {text}**\n\n{shown}")
    propagated = [run for run in runs if run.weights is None]
    allocations = {
        run.label if run.top_up and run.top_up["segments"] else run.spec.sampling.label: run.allocation
        for run in distinct_allocations(propagated)
    }
    if allocations:
        with warned_if_unwritten("allocations.png", say, _AGAIN):
            _keep(allocation_bars(allocations), "allocations", jobs, parent, result)
    if notes:
        parent.note("\n".join(notes))


def _by_text(runs: Sequence[PreparedRun]) -> list[tuple[tuple[str, str], str, list[PreparedRun]]]:
    """Group what may stand in one table: runs of one model, scored on one text, as on the report page.

    A table has a shown model and text, of which digests tell those of one name apart; then the set, and its runs.
    """
    groups: dict[tuple[str, str, str], list[PreparedRun]] = {}
    for run in runs:
        for name, text in run.evaluation.items():
            groups.setdefault((run.model.fingerprint, name, text.fingerprint), []).append(run)
    models = list(dict.fromkeys(run.model.fingerprint for run in runs))
    names = [own[0].model.name for own in {key[0]: own for key, own in groups.items()}.values()]
    tables = []
    for model, name, fingerprint in sorted(groups, key=lambda key: models.index(key[0])):
        own = groups[model, name, fingerprint]
        shown = own[0].model.name
        if names.count(shown) > 1:
            shown += f"-{model[:8]}"
        alone = sum(key[:2] == (model, name) for key in groups) == 1
        tables.append(((shown, name if alone else f"{name}-{fingerprint[:8]}"), name, own))
    return tables


def distinct_allocations(runs: Sequence[PreparedRun]) -> list[PreparedRun]:
    """Return the first run of each allocation and, with dense statistics, of each set of language weights."""
    first: dict[str, PreparedRun] = {}
    for run in runs:
        first.setdefault(json.dumps([run.allocation, run.shares]), run)
    return list(first.values())


def _summaries_first(table: pd.DataFrame) -> pd.DataFrame:
    """Move the summary rows to the top: MLflow folds a long note, and they are to be seen without unfolding it."""
    summaries = [row for row in SUMMARIES if row in table.index]
    return table.loc[[*summaries, *(row for row in table.index if row not in SUMMARIES)]]


def _increases(run: PreparedRun, name: str, metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the increases on one of the run's evaluation sets, by language and summary."""
    return MetricNames.by_set(run.evaluation)[name].rows(INCREASE, metrics)


def _keep(figure: Figure, name: str, jobs: SweepJobs, parent: TrackedRun, result: SweepResult) -> None:
    path = save_figure(figure, jobs.folders.figures / short_name(name, ".png", _LONGEST))
    parent.artifact(path, "figures")
    result.figures.append(path)
