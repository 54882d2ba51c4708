"""Orders to kill something in a phase: drawn outside, obeyed in the processes of a sweep, which know their phase."""

import contextlib
import json
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from mbs_ray.cluster.stage.timeline import Timeline

#: What is killed. ``memory``: a stage takes memory until Ray's monitor kills it; ``second``: a second driver comes, and
#: is refused; ``sleep``: the driver is stopped for a while.
Target = Literal["stage", "node", "driver", "server", "memory", "second", "sleep"]
TARGETS: tuple[Target, ...] = ("stage", "node", "driver", "server", "memory", "second", "sleep")
#: Obeyed in the process of a stage, by itself.
_OF_A_STAGE = ("stage", "memory")
PHASES = ("receive", "collect", "solve", "write", "propagate", "evaluate", "track")
#: Where a process of a sweep finds the folder of orders.
FOLDER = "MBS_CHAOS_ORDERS"
#: Which start of the driver a process belongs to: a stage may live on for seconds after its driver was killed.
START = "MBS_CHAOS_START"
# A second driver on a busy machine needs longer than half a minute.
_PATIENCE = 100.0
_CHUNK = 64 * 2**20


@dataclass(frozen=True)
class Order:
    """Kill ``target`` so many seconds after a phase has begun.

    ``place``: where in tracking, for its phase; ``sleep``: seconds for which a driver sleeps; ``after``: obeyed when
    more blocks than that were solved, so that a sweep comes further between two kills; ``start``: of the driver whose
    processes it is for.
    """

    number: int
    target: Target
    phase: str
    delay: float
    place: str = ""
    sleep: float = 120.0
    after: int = 0
    start: int = 0


@dataclass(frozen=True)
class Kill:
    """What was going on when it was killed; ``node`` and ``process`` of whoever obeyed."""

    order: Order
    phase: str
    run: str
    block: int
    node: str
    process: int
    time: float


def draw(number: int, hits: Counter, away: Collection[Target], source: random.Random) -> Order:
    """A phase that was hit least, and whom: in tracking there are only drivers, and the server they talk to.

    Nobody is killed who is ``away`` already, and while the server is away nothing is tracked. Sleep, which takes
    minutes, is drawn less often.
    """
    possible = [phase for phase in PHASES if phase != "track" or "server" not in away]
    fewest = min(hits[phase] for phase in possible)
    phase = source.choice([phase for phase in possible if hits[phase] == fewest])
    targets: tuple[Target, ...] = ("driver", "server", "second", "sleep") if phase == "track" else TARGETS
    there = [target for target in targets if target not in away]
    (target,) = source.choices(there, [1 if target == "sleep" else 2 for target in there])
    delay = source.uniform(0, 0.002 if phase in ("write", "solve", "receive") else 0.03)
    return Order(number, target, phase, delay, source.choice(("describe", "deliver")) if phase == "track" else "")


class Orders:
    """A folder with at most one order, and what became of it."""

    def __init__(self, folder: Path, start: int = 0) -> None:
        self.folder, self._start, self._after, self._dying = folder, start, 0, False
        folder.mkdir(parents=True, exist_ok=True)

    def post(self, order: Order, start: int) -> None:
        """Have an order obeyed in the first such phase once a block was solved that was not when the last one was."""
        _write(self.folder / "order.json", asdict(replace(order, after=self._after, start=start)))

    def withdraw(self) -> bool:
        """Take back what nobody has begun to obey."""
        return self._take("withdrawn") is not None

    def announced(self) -> Kill | None:
        """The kill that is due, or done by a stage itself; once."""
        path = self.folder / "kill.json"
        if not path.is_file():
            return None
        content = json.loads(path.read_text())
        path.unlink()
        self._after = self._blocks_solved()
        return Kill(**{**content, "order": Order(**content["order"])})

    def confirm(self) -> None:
        """Who waits in its phase goes on, if it still can."""
        (self.folder / "confirmed").touch()

    def solved(self) -> list[tuple[float, str, int]]:
        """Time, run and block of every solving that was begun."""
        path = self.folder / "solved.jsonl"
        return [tuple(json.loads(line)) for line in path.read_text().splitlines()] if path.is_file() else []

    def note_solving(self, run: str, block: int) -> None:
        with (self.folder / "solved.jsonl").open("a") as file:
            file.write(json.dumps([time.time(), run, block]) + "\n")

    def obey(self, phase: str, place: str, run: str, block: int, node: str) -> None:
        """Obey an order for this phase; whoever is to be killed by others, or takes memory, waits for it here."""
        while self._dying:
            time.sleep(0.1)
        order = self._pending()
        if order is None or order.phase != phase or order.place != place or self._take("taken") is None:
            return
        if order.target in _OF_A_STAGE:
            return
        (self.folder / "confirmed").unlink(missing_ok=True)
        self._announce(Kill(order, phase, run, block, node, os.getpid(), time.time()))
        if order.target == "driver" and phase == "track":
            os.kill(os.getpid(), signal.SIGKILL)
        deadline = time.monotonic() + _PATIENCE
        while not (self.folder / "confirmed").exists() and time.monotonic() < deadline:
            time.sleep(0.002)

    def pending_for_stage(self, phase: str) -> Order | None:
        """An order to the process that asks, which is taken by asking."""
        order = self._pending()
        if order is None or order.target not in _OF_A_STAGE or order.phase != phase or self._take("taken") is None:
            return None
        return order

    def die(self, order: Order, phase: str, run: str, block: int, node: str) -> None:
        self._announce(Kill(order, phase, run, block, node, os.getpid(), time.time()))
        taken, self._dying = [], order.target == "memory"
        while order.target == "memory":
            taken.append(b"x" * _CHUNK)
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)

    def _pending(self) -> Order | None:
        with contextlib.suppress(FileNotFoundError):
            order = Order(**json.loads((self.folder / "order.json").read_text()))
            return order if order.start == self._start and self._blocks_solved() > order.after else None
        return None

    def _blocks_solved(self) -> int:
        return len({(run, block) for _, run, block in self.solved()})

    def _take(self, name: str) -> Path | None:
        with contextlib.suppress(FileNotFoundError):
            return (self.folder / "order.json").rename(self.folder / f"{name}.json")
        return None

    def _announce(self, kill: Kill) -> None:
        _write(self.folder / "kill.json", asdict(kill))


def own_orders() -> Orders:
    """Those for the process that asks."""
    return Orders(Path(os.environ[FOLDER]), int(os.environ[START]))


def install_in_worker() -> None:
    """In every process of Ray's workers: phases of a stage ask for orders when they begin."""
    import ray

    from mbs_ray.cluster.stage.timeline import Timeline

    orders, enter = own_orders(), Timeline.part

    @contextlib.contextmanager
    def part(self: Timeline, run: str, block: int, part: str) -> Iterator[None]:
        with enter(self, run, block, part):
            node = ray.get_runtime_context().get_node_id()
            if part == "solve":
                orders.note_solving(run, block)
            if (order := orders.pending_for_stage(part)) is not None:
                threading.Thread(target=_die_later, args=(orders, order, self, node), daemon=True).start()
            orders.obey(part, "", run, block, node)
            yield

    Timeline.part = part  # type: ignore[method-assign]


def install_in_driver() -> None:
    """The driver's phase: between finding or making a run in MLflow and describing it, and before metrics."""
    from mbs_ray.tracking.tracked_run import TrackedRun

    orders = own_orders()
    describe, deliver = TrackedRun.describe, TrackedRun.deliver_metrics

    def obeying_describe(self: TrackedRun, *arguments: object) -> None:
        orders.obey("track", "describe", self.name, -1, "")
        describe(self, *arguments)  # type: ignore[arg-type]

    def obeying_deliver(self: TrackedRun, *arguments: object) -> None:
        orders.obey("track", "deliver", self.name, -1, "")
        deliver(self, *arguments)  # type: ignore[arg-type]

    TrackedRun.describe = obeying_describe  # type: ignore[method-assign]
    TrackedRun.deliver_metrics = obeying_deliver  # type: ignore[method-assign]


def _die_later(orders: Orders, order: Order, timeline: "Timeline", node: str) -> None:
    time.sleep(order.delay)
    while (now := timeline.now()) is None:  # between two runs
        time.sleep(0.001)
    run, block, phase = now
    orders.die(order, phase, run, block, node)


def _write(path: Path, content: dict) -> None:
    partial = path.with_suffix(".tmp")
    partial.write_text(json.dumps(content))
    partial.replace(path)
