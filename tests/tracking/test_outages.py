"""The server of tracking/, and runs that go on while it is away: nothing lost, nothing double."""

import base64
import os
import secrets
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mbs_ray.errors import InputError
from mbs_ray.run.journal import Journal
from mbs_ray.tracking.mlflow_client import MlflowConnection
from mbs_ray.tracking.tracked_run import TrackedRun, child_run, sweep_run
from tests.support.mlflow_server import SERVE, free_port, listening, serving, start
from tests.support.relay import Relay


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, int]]:
    out = tmp_path_factory.mktemp("shared server") / "out"
    with serving(out) as port:
        yield out, port


@pytest.fixture
def relay(server: tuple[Path, int]) -> Iterator[Relay]:
    relay = Relay(server[1])
    yield relay
    relay.away()


@pytest.fixture
def connect(relay: Relay) -> Callable[[], MlflowConnection]:
    name = f"experiment-{uuid.uuid4()}"
    return lambda: MlflowConnection(relay.uri, name, None)


def history(connection: MlflowConnection, run: TrackedRun, key: str) -> list[tuple[float, int]]:
    return [(m.value, m.step) for m in connection.client.get_metric_history(run.run_id, key)]


def arrives(run: TrackedRun) -> bool:
    """Whether all is delivered within the pause after a failure that was noticed at once."""
    deadline = time.monotonic() + 30
    while not run.sync():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def test_a_run_is_logged_through_the_server_into_its_own_folder(
    server: tuple[Path, int], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out, port = server
    connection = MlflowConnection(f"http://127.0.0.1:{port}", "experiment", tmp_path / "not here")
    journal = Journal(tmp_path / "metrics.jsonl")
    run = child_run(connection, sweep_run(connection, "s", "s", {}, {}), "r", "r", {"a": {"b": 1}}, {}, journal)
    values = [0.1, 1 / 3, 1e300, 5e-324, -0.0, 2.0**53 + 2]
    for step, value in enumerate(values):
        journal.append({"ppl/en": value}, step)
    (tmp_path / "spec.yaml").write_text("method: wanda")
    run.artifact(tmp_path / "spec.yaml")
    run.finish("FINISHED")
    assert history(connection, run, "ppl/en") == list(zip(values, range(6), strict=True))
    assert connection.client.get_run(run.run_id).data.params == {"a.b": "1"}
    assert [path.read_text() for path in (out / "artifacts").rglob("spec.yaml")] == ["method: wanda"]
    assert not (tmp_path / "not here").exists()
    assert sorted(path.name for path in out.parent.iterdir()) == ["log", "out"]
    assert capfd.readouterr().out == ""


def test_the_server_listens_on_loopback_only(server: tuple[Path, int]) -> None:
    assert listening(server[1]) == ["0100007F"]


def test_a_replay_through_the_server_doubles_nothing(connect: Callable[[], MlflowConnection], tmp_path: Path) -> None:
    journal = Journal(tmp_path / "metrics.jsonl")
    journal.append({f"ppl/l{i}": i / 7 for i in range(1200)} | {"ppl/nan": float("nan")})
    for _ in range(2):
        connection = connect()
        run = child_run(connection, sweep_run(connection, "s", "s", {}, {}), "r", "r", {}, {}, journal)
        assert run.sync()
    assert history(connection, run, "ppl/l1199") == [(1199 / 7, 0)]
    assert len(history(connection, run, "ppl/nan")) == 1
    assert len(connection.client.get_run(run.run_id).data.metrics) == 1201


def test_a_run_goes_on_while_the_server_is_away_and_everything_arrives_once(
    relay: Relay, connect: Callable[[], MlflowConnection], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    connection = connect()
    journal = Journal(tmp_path / "metrics.jsonl")
    sweep = sweep_run(connection, "s", "s", {}, {})
    run = child_run(connection, sweep, "r", "r", {}, {}, journal)
    journal.append({"ppl/en": 0.0}, 0)
    assert run.sync()
    for outage in (1, 2):
        relay.away()
        journal.append({"ppl/en": float(outage)}, outage)
        (tmp_path / f"{outage}.txt").write_text("report")
        run.artifact(tmp_path / f"{outage}.txt")
        assert not run.sync() and not sweep.sync()
        relay.back()
        assert arrives(sweep)
        assert history(connection, run, "ppl/en") == [(float(step), step) for step in range(outage + 1)]
        assert sum("MLflow at" in record.getMessage() for record in caplog.records) == outage
    assert {file.path for file in connection.client.list_artifacts(run.run_id)} == {"1.txt", "2.txt"}


def test_what_goes_on_starts_while_the_server_is_away_and_what_is_new_does_not(relay: Relay, tmp_path: Path) -> None:
    relay.away()
    with pytest.raises(InputError, match="cannot be used for tracking"):
        MlflowConnection(relay.uri, "away at first", None)
    connection = MlflowConnection(relay.uri, "away at first", None, patient=True)
    journal = Journal(tmp_path / "metrics.jsonl")
    sweep = sweep_run(connection, "s", "s", {}, {})
    run = child_run(connection, sweep, "r", "r", {}, {}, journal)
    journal.append({"ppl/en": 1.0}, 0)
    assert not sweep.sync()
    relay.back()
    assert arrives(sweep)
    assert history(connection, run, "ppl/en") == [(1.0, 0)]


def test_a_run_that_starts_and_ends_while_the_server_is_away_arrives_with_its_sweep(
    relay: Relay, connect: Callable[[], MlflowConnection], tmp_path: Path
) -> None:
    connection = connect()
    journal = Journal(tmp_path / "metrics.jsonl")
    relay.away()
    sweep = sweep_run(connection, "s", "s", {}, {})
    run = child_run(connection, sweep, "r", "r", {"seed": 1}, {}, journal)
    journal.append({"ppl/en": 1.5})
    run.note("late")
    run.finish("FAILED")
    assert (sweep.run_id, run.run_id) == ("", "")
    relay.back()
    sweep.finish("FINISHED")
    stored = connection.client.get_run(run.run_id)
    assert stored.info.status == "FAILED"
    assert stored.data.metrics == {"ppl/en": 1.5}
    assert stored.data.params == {"seed": "1"}
    assert stored.data.tags["mlflow.note.content"] == "late"
    assert stored.data.tags["mlflow.parentRunId"] == sweep.run_id
    assert connection.client.get_run(sweep.run_id).info.status == "FINISHED"


def test_a_lost_answer_leaves_one_run_and_no_metric_twice(
    relay: Relay, connect: Callable[[], MlflowConnection], tmp_path: Path
) -> None:
    connection = connect()
    journal = Journal(tmp_path / "metrics.jsonl")
    sweep = sweep_run(connection, "s", "s", {}, {})
    relay.lose = b"/runs/create"
    run = child_run(connection, sweep, "r", "r", {}, {}, journal)
    assert (relay.lost, run.run_id) == (1, "")
    assert arrives(run)
    journal.append({"ppl/en": 1.5})
    relay.lose = b"/runs/log-batch"
    assert not run.sync()
    assert relay.lost == 2
    assert arrives(run)
    runs = connection.client.search_runs([connection.experiment_id])
    assert {found.info.run_id for found in runs} == {sweep.run_id, run.run_id}
    assert history(connection, run, "ppl/en") == [(1.5, 0)]


def test_a_server_that_does_not_answer_costs_one_wait_not_one_per_call(
    relay: Relay, connect: Callable[[], MlflowConnection], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    connection = connect()
    journal = Journal(tmp_path / "metrics.jsonl")
    run = child_run(connection, sweep_run(connection, "s", "s", {}, {}), "r", "r", {}, {}, journal)
    relay.silent = True
    relay.requests = 0
    started = time.monotonic()
    for block in range(50):
        journal.append({"block/loss": 1.0}, block)
        assert not run.sync()
    assert 1 <= relay.requests <= 1 + (time.monotonic() - started) / 9


def test_the_places_of_the_data_are_not_on_the_command_line(server: tuple[Path, int]) -> None:
    out, port = server
    asked = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if f"--port\0{port}\0" in text(path)]
    assert asked
    assert not any(str(out).encode() in command for command in asked)


def text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""


@pytest.mark.slow
def test_where_a_login_is_asked_for_nobody_gets_in_without_it(tmp_path: Path) -> None:
    password = secrets.token_hex(16)
    port = free_port()
    with (tmp_path / "log").open("wb") as log:
        process = start(tmp_path / "out", port, log, MLFLOW_AUTH_ADMIN_PASSWORD=password)
    try:
        answers = {login: status(port, login, process) for login in ("", "admin:wrong", f"admin:{password}")}
    finally:
        process.terminate()
        process.wait(timeout=30)
    if set(answers.values()) == {0}:  # MLflow's own package for it is not installed here
        assert "mlflow[auth]" in (tmp_path / "log").read_text()
    else:
        assert list(answers.values()) == [401, 401, 200]
    assert not [path for path in (tmp_path / "out").iterdir() if path.stat().st_mode & 0o077]


def status(port: int, login: str, process: subprocess.Popen[bytes]) -> int:
    """The server's answer to a request, with or without a login; 0 where it did not start."""
    deadline = time.monotonic() + 120
    credentials = {"Authorization": f"Basic {base64.b64encode(login.encode()).decode()}"} if login else {}
    address = f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/search?max_results=1"
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(urllib.request.Request(address, headers=credentials), timeout=10) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            time.sleep(0.3)
    return 0


@pytest.mark.slow
@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_an_address_that_others_reach_needs_a_password(host: str, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    command = [SERVE, "out", "5000", host]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=10)
    assert done.returncode == 2
    assert "MLFLOW_AUTH_ADMIN_PASSWORD" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [[], [""], ["out", "port"], ["out", "5000", "::1", "more"], ["50%"]])
def test_the_script_says_what_it_needs(arguments: list[str], tmp_path: Path) -> None:
    done = subprocess.run([SERVE, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=10)
    assert done.returncode == 2
    assert "serve.sh" in done.stderr
    assert list(tmp_path.iterdir()) == []
