"""Sweeps and runs in a real MLflow database: found again, filled from the journal, nothing double."""

import math
import os
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from mbs_ray.errors import InputError
from mbs_ray.run.journal import Journal
from mbs_ray.tracking.mlflow_client import MlflowConnection, default_tracking_uri
from mbs_ray.tracking.tracked_run import TrackedRun, child_run, sweep_run


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("the out é")


@pytest.fixture
def connect(out: Path) -> Callable[[], MlflowConnection]:
    """Opens an experiment of this test alone, as often as it is called."""
    name = f"experiment-{uuid.uuid4()}"
    return lambda: MlflowConnection(f"sqlite:///{out}/mlflow.db", name, out / "artifacts")


def open_run(connection: MlflowConnection, journal: Journal, key: str = "run", **fields: Any) -> TrackedRun:
    sweep = sweep_run(connection, "sweep", "the sweep", {}, {})
    return child_run(
        connection, sweep, key, f"name of {key}", fields.get("params", {}), fields.get("tags", {}), journal
    )


def history(connection: MlflowConnection, run: TrackedRun, key: str) -> list[tuple[float, int, int]]:
    return [(m.value, m.step, m.timestamp) for m in connection.client.get_metric_history(run.run_id, key)]


def test_a_run_is_stored_as_a_child_of_its_sweep_with_all_it_was_given(
    connect: Callable[[], MlflowConnection], out: Path, tmp_path: Path
) -> None:
    connection = connect()
    journal = Journal(tmp_path / "metrics.jsonl")
    sweep = sweep_run(connection, "sweep", "the sweep", {"seeds": [0, 1]}, {"model": "bloom"})
    params = {"method": {"name": "wanda", "sparsity": 0.5}, **{f"p{i}": i for i in range(250)}}
    run = child_run(connection, sweep, "run", "wanda-50-equal", params, {"sampling": "equal"}, journal)
    for block in range(3):
        journal.append({"block/loss": 0.1 * block}, step=block, timestamp=1000 + block)
    journal.append({"ppl/en": 12.25, "ppl/ta": math.nan}, timestamp=2000)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "report.parquet").write_bytes(b"rows")
    run.artifact(tmp_path / "folder" / "report.parquet", "reports")
    run.artifact(tmp_path / "folder")
    run.figure(Figure(), "allocation")
    run.note("| language | ppl |")
    run.finish("FINISHED")

    stored = connection.client.get_run(run.run_id)
    assert stored.info.status == "FINISHED"
    assert stored.info.run_name == "wanda-50-equal"
    assert stored.data.tags["mlflow.parentRunId"] == sweep.run_id
    assert stored.data.tags["sampling"] == "equal"
    assert stored.data.tags["mlflow.note.content"] == "| language | ppl |"
    assert len(stored.data.params) == 252
    assert stored.data.params["method.sparsity"] == "0.5"
    assert history(connection, run, "block/loss") == [(0.0, 0, 1000), (0.1, 1, 1001), (0.2, 2, 1002)]
    assert stored.data.metrics["ppl/en"] == 12.25
    assert math.isnan(stored.data.metrics["ppl/ta"])
    folder = out / "artifacts" / run.run_id / "artifacts"
    assert (folder / "reports" / "report.parquet").read_bytes() == b"rows"
    assert (folder / "folder" / "report.parquet").read_bytes() == b"rows"
    assert (folder / "figures" / "allocation.png").read_bytes().startswith(b"\x89PNG")

    parent = connection.client.get_run(sweep.run_id)
    assert parent.info.status == "RUNNING"
    assert parent.data.params == {"seeds": "[0, 1]"}
    assert parent.data.tags["model"] == "bloom"


def test_a_replay_from_another_process_or_after_a_part_doubles_nothing(
    connect: Callable[[], MlflowConnection], tmp_path: Path
) -> None:
    journal = Journal(tmp_path / "metrics.jsonl")
    connection = connect()
    run = open_run(connection, journal)
    values = {f"ppl/l{i}": i / 7 for i in range(1200)} | {"ppl/nan": math.nan, "ppl/zero": -0.0}
    journal.append(values, timestamp=1)
    assert run.sync() and run.sync()
    journal.append(values, step=1, timestamp=2)
    second = connect()
    again = open_run(second, journal)
    assert again.sync() and run.sync()
    assert again.run_id == run.run_id
    for key in ("ppl/l0", "ppl/l1199", "ppl/zero"):
        assert history(second, run, key) == [(values[key], 0, 1), (values[key], 1, 2)]
    assert [step for _, step, _ in history(second, run, "ppl/nan")] == [0, 1]
    assert len(second.client.get_run(run.run_id).data.metrics) == 1202


def test_a_run_is_found_again_by_its_key_under_its_sweep_alone(
    connect: Callable[[], MlflowConnection], tmp_path: Path
) -> None:
    journal = Journal(tmp_path / "metrics.jsonl")
    first, second = connect(), connect()
    sweep = sweep_run(first, "a", "a", {}, {})
    run = child_run(first, sweep, "a", "run", {}, {}, journal)
    run.finish("KILLED")
    same_sweep = sweep_run(second, "a", "renamed", {}, {})
    same = child_run(second, same_sweep, "a", "run", {}, {}, journal)
    other_key = child_run(second, same_sweep, "b", "run", {}, {}, journal)
    other_sweep = child_run(second, sweep_run(second, "b", "b", {}, {}), "a", "run", {}, {}, journal)
    assert (same_sweep.run_id, same.run_id) == (sweep.run_id, run.run_id)
    assert len({sweep.run_id, run.run_id, other_key.run_id, other_sweep.run_id}) == 4
    assert second.client.get_run(run.run_id).info.status == "RUNNING"
    same.finish("FINISHED")
    assert second.client.get_run(run.run_id).info.status == "FINISHED"


def test_a_changed_parameter_is_a_warning_and_new_ones_are_added(
    connect: Callable[[], MlflowConnection], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal(tmp_path / "metrics.jsonl")
    open_run(connect(), journal, params={"stages": 2, "seed": 0, "long": "x" * 7000})
    assert not caplog.records
    connection = connect()
    run = open_run(connection, journal, params={"stages": 3, "seed": 0, "long": "x" * 7000, "new": 1})
    assert [record.getMessage() for record in caplog.records] == [
        "run name of run keeps in MLflow the first values of: stages"
    ]
    expected = {"stages": "2", "seed": "0", "long": "x" * 6000, "new": "1"}
    assert connection.client.get_run(run.run_id).data.params == expected


def test_no_secret_reaches_the_database(connect: Callable[[], MlflowConnection], out: Path, tmp_path: Path) -> None:
    secret = "hunter2-is-secret"
    fields = {"hub": {"token": secret}, "corpus": f"https://me:{secret}@host/x", "shown": "shown-in-the-db"}
    open_run(connect(), Journal(tmp_path / "j"), params=fields, tags={"password": secret})
    stored = b"".join(path.read_bytes() for path in out.glob("mlflow.db*"))
    assert b"shown-in-the-db" in stored
    assert secret.encode() not in stored


def test_what_mlflow_refuses_for_good_holds_up_nothing_else(
    connect: Callable[[], MlflowConnection], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    connection = connect()
    journal = Journal(tmp_path / "metrics.jsonl")
    kept, deleted = open_run(connection, journal, "kept"), open_run(connection, journal, "deleted")
    connection.client.delete_run(deleted.run_id)
    journal.append({"ppl/en": 1.0}, timestamp=1)
    assert deleted.sync()
    assert "refuses a part of run name of deleted" in caplog.text
    kept.artifact(tmp_path / "absent.parquet")
    assert "there is no" in caplog.text
    kept.note("after")
    kept.finish("FAILED")
    stored = connection.client.get_run(kept.run_id)
    assert (stored.info.status, stored.data.tags["mlflow.note.content"]) == ("FAILED", "after")
    assert history(connection, kept, "ppl/en") == [(1.0, 0, 1)]


def test_a_note_too_long_for_mlflow_is_cut_at_a_line_and_kept_whole_as_an_artefact(
    connect: Callable[[], MlflowConnection], out: Path, tmp_path: Path
) -> None:
    connection = connect()
    run = open_run(connection, Journal(tmp_path / "j"))
    table = "\n".join(f"| language {i} | {i} |" for i in range(600))
    run.note(table)
    shown = connection.client.get_run(run.run_id).data.tags["mlflow.note.content"]
    lines, _, ending = shown.partition("\n\n")
    assert len(shown) <= 8000 and "note.md" in ending
    assert lines.splitlines() == table.splitlines()[: len(lines.splitlines())]
    assert (out / "artifacts" / run.run_id / "artifacts" / "note.md").read_text() == table


def test_the_environment_names_the_tracking_uri_or_else_it_is_under_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    assert default_tracking_uri(Path("out")) == f"sqlite:///{tmp_path.resolve()}/out/mlflow.db"
    with pytest.raises(InputError, match="another --out"):
        default_tracking_uri(Path("50%"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:5000")
    assert default_tracking_uri(Path("50%")) == "http://host:5000"


@pytest.mark.parametrize("uri", ["sqlite:///mlflow.db", "file:/tmp/x", "mlruns", "databricks"])
def test_a_relative_or_unknown_tracking_uri_is_refused(uri: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no tracking uri"):
        MlflowConnection(uri, "experiment", tmp_path)


def test_what_cannot_be_reached_is_one_clear_line_without_credentials(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="folder for the artefacts"):
        MlflowConnection(f"sqlite:///{tmp_path}/mlflow.db", "experiment", None)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be used for tracking"):
        MlflowConnection(f"sqlite:///{tmp_path}/file/mlflow.db", "experiment", tmp_path)
    with pytest.raises(InputError, match="cannot be used for tracking") as error:
        MlflowConnection("http://me:hunter2@127.0.0.1:9", "experiment", None)
    assert "hunter2" not in str(error.value) and "\n" not in str(error.value)


def test_a_deleted_experiment_is_an_error_that_says_so(connect: Callable[[], MlflowConnection]) -> None:
    connection = connect()
    connection.client.delete_experiment(connection.experiment_id)
    with pytest.raises(InputError, match="was deleted; restore it"):
        connect()


def test_the_import_is_cheap_and_a_new_database_is_made_in_silence_and_without_reporting(tmp_path: Path) -> None:
    program = (
        "import pathlib, sys\n"
        "from mbs_ray.run.journal import Journal\n"
        "from mbs_ray.tracking.mlflow_client import MlflowConnection, default_tracking_uri\n"
        "from mbs_ray.tracking.tracked_run import child_run, sweep_run\n"
        "assert 'mlflow' not in sys.modules and 'matplotlib' not in sys.modules\n"
        "out = pathlib.Path('out')\n"
        "tracking = MlflowConnection(default_tracking_uri(out), 'experiment', out / 'artifacts')\n"
        "run = child_run(tracking, sweep_run(tracking, 's', 's', {}, {}), 'r', 'r', {}, {}, Journal(out / 'j'))\n"
        "run.finish('FINISHED')\n"
        "from mlflow.telemetry.utils import is_telemetry_disabled\n"
        "assert is_telemetry_disabled()\n"
    )
    # As a user has it: MLflow is silent about usage in tests and on build machines anyway.
    hidden = ("MLFLOW_", "PYTEST_", "CI", "GITHUB_", "JENKINS_", "DO_NOT_TRACK")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["mlflow.db"]
