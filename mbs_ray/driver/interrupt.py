"""A polite request to stop (SIGTERM, as `ray job stop` and batch systems send it) ends work as Ctrl-C does."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class TerminatedError(KeyboardInterrupt):
    """SIGTERM asked the process to stop."""


@contextmanager
def interrupted_by_sigterm() -> Iterator[None]:
    """Have SIGTERM raise :class:`TerminatedError` inside; in the main thread only, elsewhere nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise TerminatedError

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
