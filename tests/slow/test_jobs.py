"""A sweep as a job of a real Ray: submitted, stopped in the middle, submitted again; its results in a real MLflow."""

import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from typer.testing import CliRunner

from mbs_ray.cli import app
from mbs_ray.tracking.mlflow_client import open_client
from tests.support.mlflow_server import free_ports, serving
from tests.support.models import HELD_OUT, write_bloom, write_corpus

ROOT = Path(__file__).parents[2]
BITS = range(3, 9)
RUNS = [f"gptq-{bits}bit-equal" for bits in BITS]


@dataclass(frozen=True)
class Head:
    """A Ray of its own, that asks for a token of its own."""

    folder: Path
    address: str
    metrics_port: int
    environment: dict[str, str] = field(repr=False)

    def submit(self, submission: str, log: Path, variables: dict[str, str], *command: str) -> subprocess.Popen[bytes]:
        """``ray job submit`` as the documentation has it, which follows the job's log until it ends."""
        runtime_env = yaml.safe_load((ROOT / "jobs" / "runtime_env.yaml").read_text())
        runtime_env["env_vars"] |= variables
        given = ["--submission-id", submission, "--runtime-env-json", json.dumps(runtime_env), "--working-dir", "."]
        submit = ["ray", "job", "submit", "--address", self.address, *given, "--", "python", *command]
        with log.open("wb") as output:
            return subprocess.Popen(submit, cwd=ROOT, env=self.environment, stdout=output, stderr=output)

    def stop(self, submission: str) -> None:
        stop = ["ray", "job", "stop", "--address", self.address, submission]
        subprocess.run(stop, env=self.environment, timeout=120, check=True)

    def answer(self, token: str, path: str = "") -> tuple[int, bytes]:
        """What is answered to a request with this token: status, 0 where nobody answers, and content."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        request = urllib.request.Request(f"{self.address}/api/jobs/{path}", headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, b""
        except OSError:
            return 0, b""

    def metrics(self) -> str:
        """What Prometheus would be given by the node."""
        address = f"http://{ray.util.get_node_ip_address()}:{self.metrics_port}/metrics"
        with urllib.request.urlopen(address, timeout=30) as answer:
            return answer.read().decode()

    def status(self, submission: str) -> str:
        token = (self.folder / "token").read_text()
        return json.loads(self.answer(token, submission)[1])["status"]

    def processes(self) -> dict[int, str]:
        """Command lines of the processes that belong to this Ray, by process id."""
        found = {}
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it has ended meanwhile
                command = (process / "cmdline").read_bytes()
                told = command + (process / "environ").read_bytes() + b"".join(open_files(process))
                if os.fsencode(self.folder) in told:
                    found[int(process.name)] = command.replace(b"\0", b" ").decode(errors="replace")
        return found

    def workers(self) -> list[str]:
        return [command for command in self.processes().values() if "ray::Stage" in command or "jobs/" in command]


def open_files(process: Path) -> Iterator[bytes]:
    for link in (process / "cwd", *(process / "fd").iterdir()):
        with contextlib.suppress(OSError):  # it was closed meanwhile
            yield os.fsencode(link.readlink())


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(tmp_path_factory.mktemp("tracking") / "out") as port:
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    folder = Path(tempfile.mkdtemp(prefix="mbs-"))  # short: the paths of Ray's sockets are limited to 107 bytes
    token = folder / "token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
    environment = {
        **clean,
        "PATH": path,
        "OMP_NUM_THREADS": "1",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    dashboard, metrics, port, agent, client = free_ports(5)
    options = {
        "port": port,
        "dashboard-host": "127.0.0.1",
        "dashboard-port": dashboard,
        "dashboard-agent-listen-port": agent,
        "ray-client-server-port": client,
        "metrics-export-port": metrics,
        "system-config": json.dumps({"metrics_report_interval_ms": 500}),
        "min-worker-port": 0,  # or it would share the default range with another Ray on this machine
        "max-worker-port": 0,
        "num-cpus": 2,
        "object-store-memory": 80 * 2**20,
        "temp-dir": folder / "ray",
    }
    command = ["ray", "start", "--head", "--block", *(f"--{name}={value}" for name, value in options.items())]
    head = Head(folder, f"http://127.0.0.1:{dashboard}", metrics, environment)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 180
        while head.answer(token.read_text())[0] != 200:
            assert process.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.5)
        yield head
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=5)  # Ray drains a node for half a minute where an actor is alive
        while left := head.processes():
            for one in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(one, signal.SIGKILL)
            time.sleep(0.1)
        process.wait(timeout=10)
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def sweep(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six runs, long enough to be stopped among them."""
    folder = tmp_path_factory.mktemp("sweep")
    held_out = write_corpus(folder / "held-out", first=HELD_OUT)
    content = {
        "name": "submitted",
        "model": str(write_bloom(folder / "bloom", layers=6, hidden=64)),
        "corpus": str(corpus),
        "languages": ["en", "fr", "sw", "hi"],
        "segments": 512,
        "sequence_length": 64,
        "allow_repeat": True,
        "microbatch": 4,
        "evaluation": {"held-out": {"corpus": str(held_out), "segments": 4}},
        "layout": {"stages": 2},
        "threads": 1,
        "grid": {"method": [{"name": "gptq", "bits": bits} for bits in BITS], "sampling": ["equal"]},
    }
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def wait_for(pattern: str, log: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 300
    while not re.search(pattern, log.read_text()):
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)


def wait_for_metrics(head: Head, process: subprocess.Popen[bytes]) -> None:
    """Until the node tells of blocks that each of the two stages wrote, of tokens, and of activations by tier."""
    wanted = [rf'ray_mbs_blocks_done(_total)?{{[^}}]*stage="{stage}"[^}}]*}} [1-9]' for stage in (1, 2)] + [
        r"ray_mbs_tokens_per_second{[^}]*} [1-9]",
        r'ray_mbs_activation_bytes{[^}]*tier="device"[^}]*} [1-9]',
    ]
    deadline = time.monotonic() + 300
    while wanted:
        assert process.poll() is None and time.monotonic() < deadline, wanted
        told = head.metrics()
        wanted = [pattern for pattern in wanted if not re.search(pattern, told)]
        time.sleep(0.5)


def tracked(uri: str) -> dict[str, Any]:
    """The runs in MLflow by their names; none twice."""
    client = open_client(uri)
    experiment = client.get_experiment_by_name("submitted")
    runs = client.search_runs([experiment.experiment_id])
    assert len({run.info.run_name for run in runs}) == len(runs)
    return {run.info.run_name: run for run in runs}


def test_the_cluster_answers_nobody_without_its_token(head: Head) -> None:
    assert head.answer("")[0] == 401
    assert head.answer(secrets.token_hex(32))[0] == 403


def test_a_submitted_sweep_can_be_stopped_and_submitted_again(
    head: Head, mlflow: str, sweep: Path, tmp_path: Path
) -> None:
    out = tmp_path / "results"
    command = ["jobs/sweep.py", str(sweep), "--out", str(out)]
    variables = {"MLFLOW_TRACKING_URI": mlflow}

    first = head.submit("first", tmp_path / "first.log", variables, *command)
    wait_for(rf"{RUNS[0]}: done", tmp_path / "first.log", first)
    assert head.workers()
    head.stop("first")
    first.wait(timeout=60)
    assert head.status("first") == "STOPPED"
    assert head.workers() == []
    finished = [run for run in RUNS if (out / "submitted" / "runs" / run / "result.json").is_file()]
    assert 0 < len(finished) < len(RUNS)
    runs = tracked(mlflow)
    assert {runs[name].info.status for name in ("submitted", *RUNS) if name not in finished} == {"KILLED"}

    second = head.submit("second", tmp_path / "second.log", variables, *command)
    wait_for_metrics(head, second)
    assert second.wait(timeout=400) == 0, (tmp_path / "second.log").read_text()
    assert head.status("second") == "SUCCEEDED"
    log = (tmp_path / "second.log").read_text()
    assert "layout: " in log
    assert f"tracking: {mlflow}" in log
    assert {run for run in RUNS if f"{run}: done in" in log} == set(RUNS) - set(finished)
    runs = tracked(mlflow)
    assert set(runs) == {"submitted", *RUNS}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    for name in RUNS:
        assert runs[name].data.metrics["ppl/sw"] > 0
        assert (out / "submitted" / "runs" / name / "checkpoint" / "config.json").is_file()
    assert head.workers() == []
    token = (head.folder / "token").read_text()
    assert not any(token in path.read_text() for path in (tmp_path / "first.log", tmp_path / "second.log"))


@pytest.mark.parametrize("command", ["compress", "evaluate", "sweep"])
def test_an_entry_point_takes_what_the_command_takes(command: str) -> None:
    script = [sys.executable, str(ROOT / "jobs" / f"{command}.py"), "--help"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    asked = subprocess.run(script, env=environment, capture_output=True, text=True, timeout=120, check=True).stdout
    told = CliRunner().invoke(app, [command, "--help"]).stdout
    assert options(asked) == options(told) != set()


def options(text: str) -> set[str]:
    return set(re.findall(r"--[a-z-]+", text))
