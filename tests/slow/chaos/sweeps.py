"""Sweeps under kills: the driver is started again as often as it dies, nodes and the MLflow server are replaced.

A second driver of the same sweep is to end in one line, and one that slept goes on where it was.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import BinaryIO

import yaml

from tests.slow.chaos.nodes import Nodes
from tests.slow.chaos.orders import FOLDER, START, Kill, Order, Orders, Target
from tests.support.mlflow_server import free_port, start, wait_until_healthy

_SERVER = "MBS_CHAOS_SERVER"
_REPLACED_AFTER = 6.0
# A driver that was killed needs half a minute to be back on a busy machine, and then has a block to solve.
_PATIENCE = 90.0
_LONGEST = 1800.0


class Server:
    """The MLflow server of tracking/, which can be killed and comes back at the same address."""

    def __init__(self, folder: Path) -> None:
        self._out, self._log = folder / "mlflow", (folder / "mlflow.log").open("wb")
        folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.start()
        wait_until_healthy(self.port, self._process)

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._log.close()

    def start(self) -> None:
        log: BinaryIO = self._log
        self._process = start(self._out, self.port, log, **{_SERVER: str(self.port)})

    def wait(self) -> None:
        wait_until_healthy(self.port, self._process)

    def kill(self) -> None:
        mark = f"{_SERVER}={self.port}\0".encode()
        while left := [one for one in Path("/proc").glob("[0-9]*") if mark in _environment(one)]:
            for one in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(one.name), signal.SIGKILL)
            time.sleep(0.02)
        self._process.wait(timeout=10)


@dataclass
class Endured:
    """A sweep that was driven to its end.

    Its kills in order, what was solved when, starts of the driver, and what second drivers said.
    """

    folder: Path
    kills: list[Kill] = field(default_factory=list)
    solved: list[tuple[float, str, int]] = field(default_factory=list)
    starts: int = 0
    refusals: list[str] = field(default_factory=list)

    def blocks_redone(self, index: int) -> int:
        """Blocks that were solved again after a kill and before the next one."""
        begin = self.kills[index].time
        end = self.kills[index + 1].time if index + 1 < len(self.kills) else float("inf")
        before = {(run, block) for moment, run, block in self.solved if moment <= begin}
        return len({(run, block) for moment, run, block in self.solved if begin < moment < end} & before)


def endure(
    spec: dict,
    out: Path,
    nodes: Nodes,
    server: Server,
    orders: Callable[[Endured, set[Target]], Order | None],
    log: Path,
) -> Endured:
    """Run a sweep under orders, the next of which is asked for as soon as the one before was obeyed.

    ``orders`` is told what was killed and is not back yet; while a second driver is there, or the driver sleeps, it is
    not asked. Who obeyed goes on once the next order is there, so that no sweep is too fast for its orders.

    A driver that was killed is started again, and so is one that ended while the MLflow server was away, as its last
    words ask for. AssertionError, with the end of the driver's log, where the sweep does not come to a good end.
    """
    file = log.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(spec))
    folder = Orders(log.with_suffix(".orders"))
    endured = Endured(out / spec["name"])
    environment = nodes.environment | {FOLDER: str(folder.folder), "MLFLOW_TRACKING_URI": server.uri}
    command = [sys.executable, "-m", "tests.slow.chaos.driver", str(file), str(out), nodes.address]
    deadline = time.monotonic() + _LONGEST
    back: list[_Away] = []

    def post_next() -> float | None:
        away = {one.target for one in back}
        order = None if away & {"second", "sleep"} else orders(endured, away)
        if order is None:
            return None
        folder.post(order, endured.starts)
        return time.monotonic()

    posted: float | None = None
    with log.open("wb") as written:
        while True:
            endured.starts += 1
            known = len(endured.kills)
            started = environment | {START: str(endured.starts)}
            driver = subprocess.Popen(command, env=started, stdout=written, stderr=written)
            while driver.poll() is None:
                assert time.monotonic() < deadline, _end(log)
                posted = posted or post_next()
                if (kill := folder.announced()) is not None:
                    endured.kills.append(kill)
                    second = partial(_second, command, started, driver, endured.refusals, folder.confirm)
                    back += _execute(kill, driver, nodes, server, second)
                    posted = post_next() if driver.poll() is None else None
                    if kill.order.target != "second":
                        folder.confirm()
                elif posted is not None and time.monotonic() - posted > _PATIENCE and folder.withdraw():
                    posted = None  # its phase did not come any more
                back = [one for one in back if not one.over()]
                time.sleep(0.005)
            if (kill := folder.announced()) is not None:  # the driver killed itself
                endured.kills.append(kill)
                posted = None
            if driver.returncode == -signal.SIGKILL:
                continue
            assert driver.returncode == 0, _end(log)
            if folder.withdraw():
                posted = None
            if all(kill.order.target != "server" for kill in endured.kills[known:]):
                break
            while back:
                back = [one for one in back if not one.over()]
                time.sleep(0.1)
            server.wait()
    while back:
        back = [one for one in back if not one.over()]
        time.sleep(0.1)
    endured.solved = folder.solved()
    return endured


@dataclass(frozen=True)
class _Away:
    """What was killed, or came in between; ``over`` says whether all is as before, and starts what is due."""

    target: Target
    over: Callable[[], bool]


def _execute(
    kill: Kill, driver: "subprocess.Popen[bytes]", nodes: Nodes, server: Server, second: Callable[[], _Away]
) -> list[_Away]:
    """Kill what is not dead yet; what is not as it was, and when it will be."""
    if kill.order.target == "driver":
        driver.kill()
        driver.wait()
    elif kill.order.target == "node":
        nodes.kill(nodes.of_process(kill.process))
        return [_later("node", _REPLACED_AFTER, nodes.add)]
    elif kill.order.target == "server":
        server.kill()
        return [_later("server", _REPLACED_AFTER, server.start)]
    elif kill.order.target == "second":
        return [second()]
    elif kill.order.target == "sleep":
        driver.send_signal(signal.SIGSTOP)
        return [_later("sleep", kill.order.sleep, lambda: driver.send_signal(signal.SIGCONT))]
    return []


def _later(target: Target, seconds: float, start: Callable[[], None]) -> _Away:
    due = time.monotonic() + seconds

    def over() -> bool:
        if time.monotonic() < due:
            return False
        start()
        return True

    return _Away(target, over)


def _second(
    command: list[str],
    environment: dict[str, str],
    first: "subprocess.Popen[bytes]",
    refusals: list[str],
    confirm: Callable[[], None],
) -> _Away:
    """Start a second driver, which is to be refused in one line, unless the first has ended meanwhile.

    The stage that obeyed waits for it, or a small sweep would have ended before a driver has started.
    """
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def over() -> bool:
        if process.poll() is None:
            return False
        confirm()
        stdout, stderr = process.communicate()
        errors = [line for line in stderr.splitlines() if line.startswith("error: ")]
        if process.returncode == 2 and len(errors) == 1 and "held by" in errors[0] and "Traceback" not in stderr:
            refusals.append(errors[0])
        else:
            assert process.returncode == 0 and first.poll() is not None, stdout + stderr
        return True

    return _Away("second", over)


def _environment(process: Path) -> bytes:
    with contextlib.suppress(OSError):  # it has ended meanwhile
        return (process / "environ").read_bytes()
    return b""


def _end(log: Path) -> str:
    return log.read_text(errors="replace")[-6000:]
