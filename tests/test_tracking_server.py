"""The server of tracking/, and runs that go on while it is away: nothing lost, nothing double."""

import contextlib
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mbs_ray.tracking import Journal, TrackedRun, Tracking

SERVE = Path(__file__).parents[1] / "tracking" / "serve.sh"


class Relay:
    """A port in front of the server that can be taken away, kept silent, or lose an answer."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.silent = False
        self.lose: bytes | None = None
        self.lost = 0
        self.requests = 0
        self._ends: list[socket.socket] = []
        self.port = 0
        self.back()
        self.uri = f"http://127.0.0.1:{self.port}"

    def back(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def away(self) -> None:
        for end in [self._listener, *self._ends]:
            # A thread that waits in accept or recv would keep a socket that is merely closed alive.
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        self._ends.clear()

    def _accept(self, listener: socket.socket) -> None:
        try:
            while True:
                client, _ = listener.accept()
                server = socket.create_connection(("127.0.0.1", self.target))
                self._ends += [client, server]
                losing = threading.Event()
                threading.Thread(target=self._ask, args=(client, server, losing), daemon=True).start()
                threading.Thread(target=self._answer, args=(server, client, losing), daemon=True).start()
        except OSError:
            return

    def _ask(self, client: socket.socket, server: socket.socket, losing: threading.Event) -> None:
        try:
            while data := client.recv(65536):
                self.requests += data.count(b" HTTP/1.1\r\n")
                if self.lose is not None and self.lose in data:
                    self.lose = None
                    losing.set()
                if not self.silent:
                    server.sendall(data)
        except OSError:
            return

    def _answer(self, server: socket.socket, client: socket.socket, losing: threading.Event) -> None:
        try:
            while data := server.recv(65536):
                if losing.is_set():
                    self.lost += 1
                    client.shutdown(socket.SHUT_RDWR)
                    return
                client.sendall(data)
        except OSError:
            return


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, int]]:
    out = tmp_path_factory.mktemp("shared server") / "out"
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with (out.parent / "log").open("wb") as log:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # where this environment's mlflow is
        environment = {**os.environ, "PATH": path}
        process = subprocess.Popen(
            [SERVE, str(out), str(port)], cwd=out.parent, stdout=log, stderr=log, env=environment
        )
    try:
        wait_until_healthy(port, process)
        yield out, port
    finally:
        process.terminate()
        process.wait(timeout=30)
    deadline = time.monotonic() + 20
    while listening(port):
        assert time.monotonic() < deadline, "the server outlived its script"
        time.sleep(0.2)


def wait_until_healthy(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
                assert answer.status == 200
                return
        except OSError:
            assert process.poll() is None and time.monotonic() < deadline, "the server did not start"
            time.sleep(0.3)


def listening(port: int) -> list[str]:
    """The local addresses, in hexadecimal, on which somebody listens at this port."""
    rows = Path("/proc/net/tcp").read_text().splitlines() + Path("/proc/net/tcp6").read_text().splitlines()
    found = [re.match(rf"\s*\d+: (\w+):{port:04X} \w+:\w+ 0A ", row) for row in rows]
    return [match[1] for match in found if match]


@pytest.fixture
def relay(server: tuple[Path, int]) -> Iterator[Relay]:
    relay = Relay(server[1])
    yield relay
    relay.away()


@pytest.fixture
def connect(relay: Relay) -> Callable[[], Tracking]:
    name = f"experiment-{uuid.uuid4()}"
    return lambda: Tracking(relay.uri, name, None)


def history(tracking: Tracking, run: TrackedRun, key: str) -> list[tuple[float, int]]:
    return [(m.value, m.step) for m in tracking.client.get_metric_history(run.run_id, key)]


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
    tracking = Tracking(f"http://127.0.0.1:{port}", "experiment", tmp_path / "not here")
    journal = Journal(tmp_path / "metrics.jsonl")
    run = tracking.run(tracking.sweep("s", "s", {}, {}), "r", "r", {"a": {"b": 1}}, {}, journal)
    values = [0.1, 1 / 3, 1e300, 5e-324, -0.0, 2.0**53 + 2]
    for step, value in enumerate(values):
        journal.append({"ppl/en": value}, step)
    (tmp_path / "spec.yaml").write_text("method: wanda")
    run.artifact(tmp_path / "spec.yaml")
    run.finish("FINISHED")
    assert history(tracking, run, "ppl/en") == list(zip(values, range(6), strict=True))
    assert tracking.client.get_run(run.run_id).data.params == {"a.b": "1"}
    assert [path.read_text() for path in (out / "artifacts").rglob("spec.yaml")] == ["method: wanda"]
    assert not (tmp_path / "not here").exists()
    assert sorted(path.name for path in out.parent.iterdir()) == ["log", "out"]
    assert capfd.readouterr().out == ""


def test_the_server_listens_on_loopback_only(server: tuple[Path, int]) -> None:
    assert listening(server[1]) == ["0100007F"]


def test_a_replay_through_the_server_doubles_nothing(connect: Callable[[], Tracking], tmp_path: Path) -> None:
    journal = Journal(tmp_path / "metrics.jsonl")
    journal.append({f"ppl/l{i}": i / 7 for i in range(1200)} | {"ppl/nan": float("nan")})
    for _ in range(2):
        tracking = connect()
        run = tracking.run(tracking.sweep("s", "s", {}, {}), "r", "r", {}, {}, journal)
        assert run.sync()
    assert history(tracking, run, "ppl/l1199") == [(1199 / 7, 0)]
    assert len(history(tracking, run, "ppl/nan")) == 1
    assert len(tracking.client.get_run(run.run_id).data.metrics) == 1201


def test_a_run_goes_on_while_the_server_is_away_and_everything_arrives_once(
    relay: Relay, connect: Callable[[], Tracking], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracking = connect()
    journal = Journal(tmp_path / "metrics.jsonl")
    sweep = tracking.sweep("s", "s", {}, {})
    run = tracking.run(sweep, "r", "r", {}, {}, journal)
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
        assert history(tracking, run, "ppl/en") == [(float(step), step) for step in range(outage + 1)]
        assert sum("MLflow at" in record.getMessage() for record in caplog.records) == outage
    assert {file.path for file in tracking.client.list_artifacts(run.run_id)} == {"1.txt", "2.txt"}


def test_a_run_that_starts_and_ends_while_the_server_is_away_arrives_with_its_sweep(
    relay: Relay, connect: Callable[[], Tracking], tmp_path: Path
) -> None:
    tracking = connect()
    journal = Journal(tmp_path / "metrics.jsonl")
    relay.away()
    sweep = tracking.sweep("s", "s", {}, {})
    run = tracking.run(sweep, "r", "r", {"seed": 1}, {}, journal)
    journal.append({"ppl/en": 1.5})
    run.note("late")
    run.finish("FAILED")
    assert (sweep.run_id, run.run_id) == ("", "")
    relay.back()
    sweep.finish("FINISHED")
    stored = tracking.client.get_run(run.run_id)
    assert stored.info.status == "FAILED"
    assert stored.data.metrics == {"ppl/en": 1.5}
    assert stored.data.params == {"seed": "1"}
    assert stored.data.tags["mlflow.note.content"] == "late"
    assert stored.data.tags["mlflow.parentRunId"] == sweep.run_id
    assert tracking.client.get_run(sweep.run_id).info.status == "FINISHED"


def test_a_lost_answer_leaves_one_run_and_no_metric_twice(
    relay: Relay, connect: Callable[[], Tracking], tmp_path: Path
) -> None:
    tracking = connect()
    journal = Journal(tmp_path / "metrics.jsonl")
    sweep = tracking.sweep("s", "s", {}, {})
    relay.lose = b"/runs/create"
    run = tracking.run(sweep, "r", "r", {}, {}, journal)
    assert (relay.lost, run.run_id) == (1, "")
    assert arrives(run)
    journal.append({"ppl/en": 1.5})
    relay.lose = b"/runs/log-batch"
    assert not run.sync()
    assert relay.lost == 2
    assert arrives(run)
    runs = tracking.client.search_runs([tracking.experiment_id])
    assert {found.info.run_id for found in runs} == {sweep.run_id, run.run_id}
    assert history(tracking, run, "ppl/en") == [(1.5, 0)]


def test_a_server_that_does_not_answer_costs_one_wait_not_one_per_call(
    relay: Relay, connect: Callable[[], Tracking], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    tracking = connect()
    journal = Journal(tmp_path / "metrics.jsonl")
    run = tracking.run(tracking.sweep("s", "s", {}, {}), "r", "r", {}, {}, journal)
    relay.silent = True
    relay.requests = 0
    started = time.monotonic()
    for block in range(50):
        journal.append({"block/loss": 1.0}, block)
        assert not run.sync()
    assert 1 <= relay.requests <= 1 + (time.monotonic() - started) / 9


@pytest.mark.parametrize("arguments", [[], [""], ["out", "port"], ["out", "5000", "more"], ["50%"]])
def test_the_script_says_what_it_needs(arguments: list[str], tmp_path: Path) -> None:
    done = subprocess.run([SERVE, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=10)
    assert done.returncode == 2
    assert "serve.sh" in done.stderr
    assert list(tmp_path.iterdir()) == []
