"""The server of tracking/, started by its own script."""

import contextlib
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

SERVE = Path(__file__).parents[2] / "tracking" / "serve.sh"


@contextlib.contextmanager
def serving(out: Path) -> Iterator[int]:
    """The port of a server that the script of tracking/ keeps up while the block lasts."""
    port = free_port()
    out.parent.mkdir(parents=True, exist_ok=True)
    with (out.parent / "log").open("wb") as log:
        process = start(out, port, log)
    try:
        wait_until_healthy(port, process)
        yield port
    finally:
        process.terminate()
        process.wait(timeout=30)
    deadline = time.monotonic() + 20
    while listening(port):
        assert time.monotonic() < deadline, "the server outlived its script"
        time.sleep(0.2)


def free_port() -> int:
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """Ports that are free and differ: all are held until the last is found."""
    with contextlib.ExitStack() as held:
        probes = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [probe.getsockname()[1] for probe in probes]


def start(out: Path, port: int, log: BinaryIO, **variables: str) -> subprocess.Popen[bytes]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # where this environment's mlflow is
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    environment = {**clean, "PATH": path, **variables}
    return subprocess.Popen([SERVE, str(out), str(port)], cwd=out.parent, stdout=log, stderr=log, env=environment)


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
