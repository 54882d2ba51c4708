"""What a user sees of work under way: live bars on a terminal, plain lines elsewhere."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from mbs_ray.cluster.job import Job
from mbs_ray.cluster.stage.stage_run import StageStatus

#: Where there is no terminal, at most one line about work under way in so many seconds, and none without news.
PLAIN_SECONDS = 10.0
#: Work that takes less is not told of.
WORK_SECONDS = 3.0

#: Where in a block a part begins and ends, as a share of the block's time; only for the time left.
_PARTS = {
    "embed": (0.0, 0.0),
    "collect": (0.0, 0.4),
    "solve": (0.4, 0.6),
    "measure": (0.6, 0.6),
    "propagate": (0.6, 1.0),
}


class Progress:
    """Progress of a command on a console; ``clock`` tells seconds."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self.clock = console, clock
        self._last, self._told = clock(), ""

    def say(self, text: str) -> None:
        """Print a line, whole: a terminal wraps it, a log file keeps it for whoever searches."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def allocation(
        self, sampling: str, allocation: Mapping[str, int], weights: Mapping[str, float] | None = None
    ) -> None:
        """Print how the segments are spread over the languages or, with dense statistics, the languages' weights."""
        if weights is None:
            spread = "  ".join(f"{language} {count}" for language, count in allocation.items())
            self.say(f"allocation {sampling} ({sum(allocation.values())} segments): {spread}")
        else:
            spread = "  ".join(f"{language} {100 * weight:.3g} %" for language, weight in weights.items())
            each = max(allocation.values())
            self.say(f"weights {sampling} (dense statistics, {each} segments of each language): {spread}")

    def work(self, what: str, done: int, total: int) -> None:
        """Print a step of work without a bar of its own: now and then, where there is news."""
        line, now = f"{what}: {100 * done / max(total, 1):.0f} %", self.clock()
        if line != self._told and now - self._last > WORK_SECONDS:
            self._last, self._told = now, line
            self.say(line)

    @contextmanager
    def steps(self, what: str) -> Iterator[Callable[[int, int], None]]:
        """Show a bar with the time left for one long work, updated by (done, total); plain lines without a terminal."""
        if not self._console.is_terminal:
            printed, told = self.clock(), ""

            def tell(done: int, total: int) -> None:
                nonlocal printed, told
                line = f"{what}: {100 * done / total:.0f} %"
                if line != told and (done >= total or self.clock() - printed > PLAIN_SECONDS):
                    printed, told = self.clock(), line
                    self.say(line)

            yield tell
            return
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
        with Bars(*columns, console=self._console) as bars:
            task = bars.add_task(what)
            yield lambda done, total: bars.update(task, completed=done, total=total)

    @contextmanager
    def runs(self, jobs: Mapping[str, Job]) -> Iterator["RunsShown"]:
        """Show runs that are in flight until the block is left."""
        if not self._console.is_terminal:
            yield RunsShown(jobs, self, None)
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=10),
            TextColumn("{task.percentage:>3.0f} %  {task.fields[where]}{task.fields[left]}"),
        )
        with Bars(*columns, console=self._console, transient=True) as bars:
            yield RunsShown(jobs, self, bars)


class RunsShown:
    """The runs in flight: stage, block, language and time left of each."""

    def __init__(self, jobs: Mapping[str, Job], progress: Progress, bars: Bars | None) -> None:
        self._jobs, self._progress, self._bars = dict(jobs), progress, bars
        self._clock = progress.clock
        self._begun: dict[str, float] = {}
        self._tasks: dict[str, TaskID] = {}
        self._ended = 0
        self._printed = self._clock()
        #: What was last told of each run, the one told longest ago first.
        self._told: dict[str, str] = {}

    def add(self, job: Job) -> None:
        """Add a job that follows from others."""
        self._jobs[job.key] = job

    def stages(self, statuses: Sequence[StageStatus]) -> None:
        """Show where every stage is."""
        furthest = _furthest(statuses)
        for key, (stage, status) in furthest.items():
            self._begun.setdefault(key, self._clock())
            if self._bars is not None:
                self._update(self._bars, key, stage, status)
        if self._bars is None and self._clock() - self._printed > PLAIN_SECONDS:
            self._tell(furthest)

    def ended(self, key: str, error: Exception | None) -> None:
        """Say that a run is through, and how many are."""
        self._ended += 1
        now = self._clock()
        seconds = now - self._begun.get(key, now)
        if self._bars is not None and key in self._tasks:
            self._bars.remove_task(self._tasks.pop(key))
        if error is None:
            self._progress.say(f"{key}: done in {seconds:.0f} s ({self._ended} of {len(self._jobs)})")

    def _tell(self, furthest: Mapping[str, tuple[int, StageStatus]]) -> None:
        """Print one line: of the runs with news, the one that was printed longest ago."""
        order = list(self._told)
        for key in sorted(furthest, key=lambda key: order.index(key) if key in order else -1):
            stage, status = furthest[key]
            news = f"{key}: {100 * self._share(key, status):.0f} %, {self._where(key, stage, status)}"
            if self._told.get(key) != news:
                self._told.pop(key, None)
                self._told[key] = news
                self._printed = self._clock()
                self._progress.say(f"{news}{self._left(key, status)}")
                return

    def _update(self, bars: Bars, key: str, stage: int, status: StageStatus) -> None:
        if key not in self._tasks:
            self._tasks[key] = bars.add_task(key, total=1.0, where="", left="")
        bars.update(
            self._tasks[key],
            completed=self._share(key, status),
            where=self._where(key, stage, status),
            left=self._left(key, status),
        )

    def _blocks(self, key: str) -> int:
        return self._jobs[key].blocks[-1].stop

    def _where(self, key: str, stage: int, status: StageStatus) -> str:
        block = f"block {status.block + 1}/{self._blocks(key)}" if status.part in _PARTS else "head"
        return f"stage {stage + 1}, {block}, {status.part} {status.language}".rstrip()

    def _share(self, key: str, status: StageStatus) -> float:
        if status.part not in _PARTS:
            return 0.99
        first, last = _PARTS[status.part]
        within = first + (last - first) * status.done / max(status.total, 1)
        return min(0.99, (max(status.block, 0) + within) / self._blocks(key))

    def _left(self, key: str, status: StageStatus) -> str:
        share = self._share(key, status)
        if share < 0.02:
            return ""
        seconds = (self._clock() - self._begun[key]) * (1 - share) / share
        return f", about {seconds:.0f} s left" if seconds < 120 else f", about {seconds / 60:.0f} min left"


def _furthest(statuses: Sequence[StageStatus]) -> dict[str, tuple[int, StageStatus]]:
    """Find the stage, with its status, that is furthest in each run in flight."""
    return {status.run: (stage, status) for stage, status in enumerate(statuses) if status.run}
