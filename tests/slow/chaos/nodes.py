"""A Ray cluster on one machine whose nodes have their own scratch, NVMe and Ray folder, and can be killed whole."""

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

import ray

from tests.support.memory import used_share
from tests.support.mlflow_server import free_port

_NODE = "MBS_CHAOS_NODE"
_HEALTH = {
    "health_check_period_ms": 500,
    "health_check_failure_threshold": 3,
    "health_check_initial_delay_ms": 500,
    "health_check_timeout_ms": 1000,
}
#: Bytes above what the machine uses now from which on Ray's memory monitor kills; a sweep needs about four GiB.
_ROOM = 10 * 2**30


class Nodes:
    """A head without CPUs, for drivers, and nodes of one CPU each.

    ``nvme`` and ``scratch`` are the same paths on every node, with a folder of the node's own behind them where the
    system lets us have mount namespaces; they are deleted with the node. All of it lies in a folder of short name:
    the paths of Ray's sockets are limited.
    """

    def __init__(self, count: int) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="mbs-"))
        self.nvme, self.scratch = self.folder / "nvme", self.folder / "scratch"
        for place in (self.nvme, self.scratch):
            place.mkdir()
        token = self.folder / "token"
        token.write_text(secrets.token_hex(32))
        token.chmod(0o600)
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
        self.environment = clean | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(Path(__file__).parents[3]),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_memory_usage_threshold": f"{_memory_threshold():.4f}",
        }
        self._alive: dict[str, subprocess.Popen[bytes]] = {}
        self._started = 0
        port = free_port()
        self.address = f"{ray.util.get_node_ip_address()}:{port}"
        self._start(
            "head", "--head", f"--port={port}", "--num-cpus=0", "--include-dashboard=false",
            f"--ray-client-server-port={free_port()}", f"--system-config={json.dumps(_HEALTH)}",
        )  # fmt: skip
        for _ in range(count):
            self.add()

    def __enter__(self) -> "Nodes":
        return self

    def __exit__(self, *_: object) -> None:
        for name in list(self._alive):
            self.kill(name)
        shutil.rmtree(self.folder, ignore_errors=True)

    def add(self) -> None:
        self._started += 1
        self._start(f"node{self._started}", f"--address={self.address}", "--num-cpus=1")

    def kill(self, name: str) -> None:
        """SIGKILL all processes of a node, and delete what was its own."""
        process = self._alive.pop(name)
        while left := _processes(self.folder / name):
            for one in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(one, signal.SIGKILL)
            time.sleep(0.02)
        process.wait(timeout=10)
        shutil.rmtree(self.folder / name)

    def of_process(self, process: int) -> str:
        """The node to which a process belongs."""
        return next(name for name in self._alive if _belongs(Path(f"/proc/{process}"), self.folder / name))

    def _start(self, name: str, *options: str) -> None:
        own = self.folder / name
        for place in ("nvme", "scratch"):
            (own / place).mkdir(parents=True)
        start = [
            "ray", "start", "--block", f"--temp-dir={own / 'ray'}", "--min-worker-port=0", "--max-worker-port=0",
            f"--object-store-memory={80 * 2**20}", f"--dashboard-agent-listen-port={free_port()}",
            "--disable-usage-stats", *options,
        ]  # fmt: skip
        mounts = [f"mount --bind {own / place} {self.folder / place}" for place in ("nvme", "scratch")]
        if _isolation():
            start = [*_isolation(), "sh", "-c", " && ".join([*mounts, 'exec "$@"']), "sh", *start]
        environment = self.environment | {_NODE: str(own), "TMPDIR": str(self.scratch)}
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(start, env=environment, stdout=log, stderr=log, start_new_session=True)
        self._alive[name] = process
        deadline = time.monotonic() + 120
        while "Ray runtime started" not in (self.folder / f"{name}.log").read_text():
            assert process.poll() is None and time.monotonic() < deadline, (self.folder / f"{name}.log").read_text()
            time.sleep(0.1)


def _memory_threshold() -> float:
    """Compute the share of all memory at which the monitor kills; Ray's own where there is less room than wanted."""
    return min(0.95, used_share(_ROOM))


@cache
def _isolation() -> list[str]:
    """What starts a command in a mount namespace of its own; empty where the system does not let us."""
    for way in (["unshare", "--mount"], ["unshare", "--user", "--map-root-user", "--mount"]):
        with contextlib.suppress(OSError):
            if subprocess.run([*way, "true"], capture_output=True).returncode == 0:
                return way
    return []


def _processes(own: Path) -> list[int]:
    return [int(process.name) for process in Path("/proc").glob("[0-9]*") if _belongs(process, own)]


def _belongs(process: Path, own: Path) -> bool:
    """By its variables, or by its logs: a process that gives itself a title may write it over its variables."""
    with contextlib.suppress(OSError):  # it has ended meanwhile
        if f"{_NODE}={own}\0".encode() in (process / "environ").read_bytes():
            return True
        return any(file.readlink().is_relative_to(own) for file in (process / "fd").iterdir())
    return False
