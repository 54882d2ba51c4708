"""Bring MLflow up to date with what the folder of a sweep holds, without Ray and without the model."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mbs_ray.errors import InputError
from mbs_ray.files import read_json_if_there
from mbs_ray.report.page import FILE as PAGE
from mbs_ray.run.directory import ALLOCATION, SPEC, RunDirectory
from mbs_ray.run.journal import Journal
from mbs_ray.run.lease import Lease, leased
from mbs_ray.run.run_facts import RunFacts
from mbs_ray.run.sweep_folders import SweepFolders
from mbs_ray.tracking.aggregates import track_aggregates
from mbs_ray.tracking.mlflow_client import DATABASE, MlflowConnection, default_tracking_uri
from mbs_ray.tracking.tracked_results import journal_blocks, track_results
from mbs_ray.tracking.tracked_run import TrackedRun, child_run, sweep_run
from mbs_ray.tracking.views import publish_view

if TYPE_CHECKING:
    from mlflow import MlflowClient

#: What a sweep leaves in its folder for people, beside the figures.
_OWN_FILES = ("increase-*.csv", "timeline.parquet", PAGE)


def track_runs(
    folder: Path, uri: str | None, take_over: bool = False, say: Callable[[str], None] = lambda line: None
) -> Iterator[tuple[str, bool]]:
    """Replay what a run, or all runs of a sweep, measured; yield (run, whether MLflow has taken everything).

    Means over seeds follow, where runs of the sweep differ by their seeds alone, then the sweep's own tables, figures,
    page and views. What MLflow already has is not doubled. Raises :class:`InputError` where the folder is neither,
    another command works on the sweep (``take_over`` and ``say`` as for :func:`leased`), or the server at ``uri``
    cannot be used; default: MLFLOW_TRACKING_URI, or the database of the sweep's ``--out``.
    """
    path = folder.resolve()
    directories = _tracked([RunDirectory(path)]) or _tracked(RunDirectory.all_of(path))
    if not directories:
        raise InputError(f"{folder}: neither the folder of a run nor that of a sweep; give <out>/<sweep>[/runs/<run>]")
    with _alone(directories[0].sweep, take_over, say) as lease:
        for directory in directories:
            if lease is not None:
                lease.check()
            yield directory.path.name, _track(directory, uri)
        folders = SweepFolders.of(directories[0].sweep)
        connection, sweep = _sweep_of(directories[0], uri)
        yield from track_aggregates(folders, connection, sweep)
        yield folders.name, _track_sweep(folders, connection, sweep)


def _alone(sweep: Path, take_over: bool, say: Callable[[str], None]) -> AbstractContextManager[Lease | None]:
    """Hold the lease of a sweep: its driver writes the same journals. Not where nothing can be written."""
    return leased(sweep, take_over, say) if os.access(sweep, os.W_OK) else nullcontext()


def track_report(folder: Path, page: Path) -> str:
    """Log the page of a sweep's folder to its run in MLflow, and say in one line how that went.

    Nothing is raised where MLflow is away. Nothing is done, and the line is empty, where the sweep was never tracked,
    or there is neither MLFLOW_TRACKING_URI nor a database in the sweep's ``--out``.
    """
    folders = SweepFolders.of(folder.resolve())
    told = next((directory.tracking_identity() for directory in _tracked(RunDirectory.all_of(folders.sweep))), None)
    out = folders.out
    if told is None or not (os.environ.get("MLFLOW_TRACKING_URI") or (out / DATABASE).is_file()):
        return ""
    try:
        connection = MlflowConnection(default_tracking_uri(out), told["experiment"], folders.artifacts)
    except InputError as error:
        return f"not logged: {error}; the same command tries again"
    sweep = sweep_run(connection, **told["sweep"], reopen=False)
    sweep.artifact(page)
    return "logged to the sweep's run in MLflow" if sweep.sync() else "not logged; the same command tries again"


def _track_sweep(folders: SweepFolders, connection: MlflowConnection, sweep: TrackedRun) -> bool:
    """Give MLflow what lies in the folder of a sweep beside its runs, and a view of the runs of each model."""
    for pattern in _OWN_FILES:
        for file in sorted(folders.sweep.glob(pattern)):
            sweep.artifact(file)
    for figure in sorted(folders.figures.glob("*.png")):
        sweep.artifact(figure, "figures")
    first: dict[str, tuple[RunDirectory, RunFacts]] = {}
    for directory in RunDirectory.all_of(folders.sweep):
        if (facts := directory.facts()) is not None:
            first.setdefault(facts.model, (directory, facts))
    for directory, facts in first.values():
        sweep.enqueue(partial(_publish_view, connection.experiment_id, directory, facts))
    return sweep.sync()


def _publish_view(experiment_id: str, directory: RunDirectory, facts: RunFacts, client: "MlflowClient") -> None:
    spec = read_json_if_there(directory.path / SPEC, "remove it: the view then shows no layer errors") or {}
    scored = facts.languages if facts.evaluation else ()
    measured = facts.languages if spec.get("per_language") else ()
    publish_view(experiment_id, facts.model, scored, client, measured, list(facts.groups))


def _sweep_of(directory: RunDirectory, uri: str | None) -> tuple[MlflowConnection, TrackedRun]:
    """Connect to MLflow and find the run of the sweep that a tracked run belongs to."""
    told = directory.tracking_identity()
    assert told is not None
    folders = SweepFolders.of(directory.sweep)
    connection = MlflowConnection(uri or default_tracking_uri(folders.out), told["experiment"], folders.artifacts)
    return connection, sweep_run(connection, **told["sweep"], reopen=False)


def _tracked(directories: Iterable[RunDirectory]) -> list[RunDirectory]:
    """Select the runs that are tracked in MLflow."""
    return [directory for directory in directories if directory.tracking_identity() is not None]


def _track(directory: RunDirectory, uri: str | None) -> bool:
    told, result = directory.tracking_identity(), directory.result()
    assert told is not None
    connection, sweep = _sweep_of(directory, uri)
    run = child_run(connection, sweep, **told["run"], journal=Journal(directory.journal), reopen=False)
    for name in (ALLOCATION, SPEC):
        if (directory.path / name).is_file():  # not where the command was killed early
            run.artifact(directory.path / name)
    if result is None:
        journal_blocks(directory, over=False)
    else:
        track_results(directory, result["metrics"], run)
        run.finish("FINISHED")
        if all(one.result() for one in RunDirectory.all_of(directory.sweep)):
            sweep.finish("FINISHED")
    return run.sync()
