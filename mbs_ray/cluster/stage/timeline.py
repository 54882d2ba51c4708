"""The timeline of a stage: disjoint spans of time, and the share of each kind of work."""

import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

#: Kinds of work by part. Time outside all parts is waiting for the next run.
KINDS = {
    "embed": "computing",
    "collect": "computing",
    "reduce": "exchanging",
    "solve": "computing",
    "broadcast": "exchanging",
    "measure": "computing",
    "propagate": "computing",
    "evaluate": "computing",
    "read": "reading",
    "write": "writing",
    "meet": "waiting",
    "receive": "waiting",
    "send": "waiting",
}


@dataclass(frozen=True)
class Span:
    """One part of a run on one stage; begin and end are seconds since the epoch."""

    run: str
    block: int
    part: str
    begin: float
    end: float


class Timeline:
    """The spans of one stage, disjoint and in order: a part that lies inside another interrupts it."""

    def __init__(self) -> None:
        self._spans: list[Span] = []
        self._open: list[tuple[str, int, str]] = []
        self._since = 0.0
        self._lock = threading.Lock()

    @contextmanager
    def part(self, run: str, block: int, part: str) -> Iterator[None]:
        """Record the time inside the with statement as this part of a block (-1: before the first) of a run."""
        with self._lock:
            self._cut()
            self._open.append((run, block, part))
        try:
            yield
        finally:
            with self._lock:
                self._cut()
                self._open.pop()

    def now(self) -> tuple[str, int, str] | None:
        """Return the run, block and part under way; None between two runs."""
        with self._lock:
            return self._open[-1] if self._open else None

    def take(self) -> list[Span]:
        """Take the spans that ended since the last call; safe from another thread."""
        with self._lock:
            taken, self._spans = self._spans, []
            return taken

    def _cut(self) -> None:
        # The innermost open part gets the time since the last cut: as a span of its own, or as a longer last one
        # where that was the same part and nothing came between. So spans never overlap.
        now = time.time()
        if self._open and now > self._since:
            run, block, part = self._open[-1]
            last = self._spans[-1] if self._spans else None
            if last is not None and (last.run, last.block, last.part, last.end) == (run, block, part, self._since):
                self._spans[-1] = Span(run, block, part, last.begin, now)
            else:
                self._spans.append(Span(run, block, part, self._since, now))
        self._since = now


def shares(spans: Iterable[Span]) -> dict[str, float]:
    """Compute the share of each kind of work in the time from the first begin to the last end; the rest is waiting."""
    spans = list(spans)
    if not spans:
        return {}
    whole = max(span.end for span in spans) - min(span.begin for span in spans)
    seconds = dict.fromkeys(dict.fromkeys(KINDS.values()), 0.0)
    for span in spans:
        seconds[KINDS[span.part]] += span.end - span.begin
    seconds["waiting"] += max(whole - sum(seconds.values()), 0.0)
    return {kind: value / whole if whole else 0.0 for kind, value in seconds.items()}
