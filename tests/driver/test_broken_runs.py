"""A run that breaks at its end breaks alone, is named with the reason, and the same command finishes it."""

import io
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient
from rich.console import Console

from mbs_ray.cluster.job import Job
from mbs_ray.cluster.layout import Layout
from mbs_ray.cluster.resources import Resources
from mbs_ray.driver.conclusion import SweepResult
from mbs_ray.driver.conductor import Conductor
from mbs_ray.driver.progress import Progress
from mbs_ray.driver.run_card import run_facts
from mbs_ray.driver.stage_driver import Ended
from mbs_ray.driver.stage_spans import StageSpans
from mbs_ray.driver.sweep_jobs import SweepJobs
from mbs_ray.errors import LeaseLostError
from mbs_ray.run.journal import Journal
from mbs_ray.run.numerics import Numerics
from mbs_ray.run.prepare import prepare_runs
from mbs_ray.run.signature import forward_fields, signature
from mbs_ray.run.sweep_folders import SweepFolders, is_listed
from mbs_ray.run.sweep_spec import SweepSpec, validated
from mbs_ray.tracking.mlflow_client import MlflowConnection, database_uri
from mbs_ray.tracking.sweep_tracking import SweepTracking
from mbs_ray.tracking.tracked_run import child_run, sweep_run
from tests.support.engine import run_here
from tests.support.models import HELD_OUT, write_corpus
from tests.support.sweeps import predrawn, prepared_runs

LABELS = ["magnitude-50-equal", "rtn-4bit-equal", "wanda-50-equal"]


class DriverHere:
    """Takes jobs through the stages in this process, without Ray."""

    def __init__(self) -> None:
        self.spans = StageSpans()

    def work(self, jobs: list[Job], ended: Ended, tick: Callable[[], None]) -> None:
        for job in jobs:
            run_here(1, [job])
            assert list(ended(job, None)) == []
            tick()


class DriverReplaced(DriverHere):
    """Finds the lease of the sweep lost."""

    def work(self, jobs: list[Job], ended: Ended, tick: Callable[[], None]) -> None:
        raise LeaseLostError("taken over")


def run_sweep(sweep: SweepSpec, out: Path, driver: DriverHere | None = None) -> tuple[SweepResult, str]:
    folders, runs, numerics = SweepFolders(out, sweep.name), prepared_runs(sweep, out), Numerics("cpu", 1)
    jobs = SweepJobs(folders, Resources(Layout(1), numerics), predrawn(runs, out), runs)
    for run in runs:
        facts = run_facts(run, forward_fields(run, numerics), Layout(1))
        folders.run(run.label).claim(signature(run, numerics, 1), facts)
    uri, said = database_uri(out), io.StringIO()
    tracked = SweepTracking(MlflowConnection(uri, sweep.name, folders.artifacts), folders, {})
    progress = Progress(Console(file=said, width=200))
    return Conductor(jobs, driver or DriverHere(), tracked, progress).run(uri), said.getvalue()


def test_no_dense_score_is_asked_for_before_a_stage_can_have_written_it(
    bloom: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS keeps a *no such file* for up to a minute: the sweep would take a dense evaluation for a missing one."""
    missed: list[Path] = []
    is_file = Path.is_file

    def noted(path: Path, **options: bool) -> bool:
        found = is_file(path, **options)
        if not found:
            missed.append(path)
        return found

    monkeypatch.setattr(Path, "is_file", noted)
    result, _ = run_sweep(small_sweep(bloom, corpus, tmp_path, ["magnitude"]), tmp_path / "out")
    assert result.failed == {}
    scores = list((tmp_path / "out").rglob("evaluation/*.parquet"))
    assert len(scores) == 2 and not set(scores) & set(missed)


def test_what_is_listed_is_there(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert not is_listed(out / "a" / "b.parquet", out)
    (out / "a").mkdir(parents=True)
    assert is_listed(out / "a", out) and not is_listed(out / "a" / "b.parquet", out)
    (out / "a" / "b.parquet").touch()
    assert is_listed(out / "a" / "b.parquet", out) and not is_listed(out / "a" / "b.parquet" / "c", out)


def small_sweep(bloom: Path, corpus: Path, folder: Path, methods: list[str]) -> SweepSpec:
    run = {
        "model": str(bloom),
        "corpus": str(corpus),
        "languages": ["en", "sw"],
        "segments": 4,
        "sequence_length": 32,
        "evaluation": {
            "held-out": {"corpus": str(write_corpus(folder / "held-out", 25, first=HELD_OUT)), "segments": 3}
        },
        "sampling": "equal",
    }
    return validated(SweepSpec, {"name": "broken", "run": run, "grid": {"method": methods}})


def states(result: SweepResult) -> dict[str, str]:
    client = MlflowClient(result.tracking_uri)
    experiment = client.get_experiment_by_name("broken")
    runs = client.search_runs([experiment.experiment_id], "tags.`mbs.kind` = 'run'")
    return {run.info.run_name: run.info.status for run in runs}


@pytest.mark.slow
def test_errors_at_the_end_of_two_runs_leave_the_third_alone(bloom: Path, corpus: Path, tmp_path: Path) -> None:
    """What cannot be written, as on a full disk: a table that MLflow is to get, and the facts of the card."""
    out = tmp_path / "out"
    sweep = small_sweep(bloom, corpus, tmp_path, ["magnitude", "rtn", "wanda"])
    runs = out / "broken" / "runs"
    obstacles = [runs / LABELS[0] / "linears.parquet", runs / LABELS[1] / "card.json"]
    for path in obstacles:
        path.mkdir(parents=True)
    for _ in range(2):
        result, said = run_sweep(sweep, out)
        assert set(result.failed) == set(LABELS[:2])
        for label, path in zip(LABELS, obstacles, strict=False):
            assert path.name in result.failed[label] and f"{label} failed: " in said
        assert states(result) == {LABELS[0]: "FAILED", LABELS[1]: "FAILED", LABELS[2]: "FINISHED"}
        (table,) = result.tables.values()
        assert table.columns.to_list() == [("wanda-50", "equal")]
    for path in obstacles:
        path.rmdir()
    result, said = run_sweep(sweep, out)
    assert result.failed == {} and set(states(result).values()) == {"FINISHED"}
    assert len(next(iter(result.tables.values())).columns) == 3


def test_whoever_was_replaced_ends_no_run_in_mlflow(bloom: Path, corpus: Path, tmp_path: Path) -> None:
    """They are those of the command that took over, and it is at work on them."""
    run = {"model": str(bloom), "corpus": str(corpus), "languages": ["en", "sw"], "segments": 4, "sequence_length": 32}
    sweep = validated(SweepSpec, {"name": "broken", "run": {**run, "sampling": "equal", "method": "magnitude"}})
    with pytest.raises(LeaseLostError):
        run_sweep(sweep, tmp_path, DriverReplaced())
    client = MlflowClient(database_uri(tmp_path))
    experiment = client.get_experiment_by_name("broken")
    stored = client.search_runs([experiment.experiment_id])
    assert [one.info.status for one in stored] == ["RUNNING"] * 2


@pytest.fixture
def connection(tmp_path: Path) -> MlflowConnection:
    return MlflowConnection(database_uri(tmp_path), "broken", tmp_path / "artifacts")


def test_an_infinite_perplexity_arrives_in_mlflow(connection: MlflowConnection, tmp_path: Path) -> None:
    parent = sweep_run(connection, "sweep", "sweep", {}, {})
    journal = Journal(tmp_path / "journal.jsonl")
    journal.append({"ppl/sw": math.inf, "ppl/ta": math.nan, "ppl/en": 12.5})
    tracked = child_run(connection, parent, "run", "run", {}, {}, journal)
    tracked.finish("FINISHED")
    assert tracked.sync()
    metrics = connection.client.get_run(tracked.run_id).data.metrics
    assert metrics["ppl/en"] == 12.5 and math.isnan(metrics["ppl/ta"])
    assert metrics["ppl/sw"] >= 1.7e308  # MLflow's own stand-in for what its database has no number for


def test_what_stops_the_end_of_a_run_leaves_it_open_to_fail(
    connection: MlflowConnection, bloom: Path, corpus: Path, tmp_path: Path
) -> None:
    run = {"model": str(bloom), "corpus": str(corpus), "languages": ["en", "sw"], "segments": 4, "sequence_length": 32}
    sweep = validated(SweepSpec, {"name": "broken", "run": {**run, "method": "magnitude", "sampling": "equal"}})
    specs = sweep.runs()
    (prepared,) = prepare_runs(specs, sweep.labels(specs), sweep.columns(specs), tmp_path / "cache")
    folders = SweepFolders(tmp_path / "out", "broken")
    directory = folders.run(prepared.label)
    (directory.path / "linears.parquet").mkdir(parents=True)
    tracking = SweepTracking(connection, folders, {})
    tracking.begin(prepared, {}, {})
    directory.journal.mkdir()  # nor can its metrics be written, now or at the end
    tracking.sync()
    directory.journal.rmdir()
    with pytest.raises(OSError, match="linears"):
        tracking.finish(prepared.label, {})
    tracking.fail(prepared.label, "no room")
    tracking.close("FAILED")
    (stored,) = connection.client.search_runs([connection.experiment_id], "tags.`mbs.kind` = 'run'")
    assert stored.info.status == "FAILED" and stored.data.tags["mlflow.note.content"] == "failed: no room"


def test_a_run_that_was_never_opened_can_fail(connection: MlflowConnection, tmp_path: Path) -> None:
    tracking = SweepTracking(connection, SweepFolders(tmp_path, "broken"), {})
    tracking.fail("nobody", "no reason")
    assert tracking.close("FINISHED")
