"""The end of an interrupted command: one line, and the exit code that a shell gives to the signal."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from mbs_ray.driver.interrupt import TerminatedError, interrupted_by_sigterm


@contextmanager
def told_of_interruption(finished: Callable[[], str]) -> Iterator[None]:
    """Print what ``finished`` returns, in one line, on Ctrl-C and SIGTERM, and exit with code 130 or 143."""
    with interrupted_by_sigterm():
        try:
            yield
        except KeyboardInterrupt as stop:
            typer.echo(f"interrupted: {finished()}", err=True)
            number = signal.SIGTERM if isinstance(stop, TerminatedError) else signal.SIGINT
            raise typer.Exit(128 + number) from None


def finished_runs(sweep: Any, out: Path) -> str:
    """Say how many runs of a sweep are finished under ``out``, and what finishes the others."""
    from mbs_ray.run.sweep_folders import SweepFolders

    folders, labels = SweepFolders(out, sweep.name), sweep.labels(sweep.runs())
    finished = sum(folders.run(label).result() is not None for label in labels)
    runs = "run is" if len(labels) == 1 else "runs are"
    return f"{finished} of {len(labels)} {runs} finished; the same command resumes from here ({folders.sweep})"
