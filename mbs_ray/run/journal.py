"""The metrics of a run as an append-only file of its run directory: the truth that MLflow is filled from."""

import errno
import json
import math
import os
import posixpath
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from mbs_ray.errors import InputError

_NAME = re.compile(r"[/\w.\- :]*")
_LONGEST_NAME = 250
#: End of a line that a killed writer left half-written; no whole line ends so.
_CUT_OFF = b" <cut off>\n"


class Entry(NamedTuple):
    """One value of one metric; `timestamp` in milliseconds since 1970 (UTC)."""

    key: str
    value: float
    step: int
    timestamp: int


class Journal:
    """An append-only JSONL file with one line `{key, value, step, timestamp}` per value.

    NaN is `null`; an infinite value, such as the perplexity of a destroyed model, the text `Infinity`.

    Its writer is the driver of the run, which holds the lease of the sweep. What is written stays: two writers on one
    host would mix their lines, and lose none.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, metrics: Mapping[str, float], step: int = 0, timestamp: int | None = None) -> None:
        """Write the values of one step; they are on the disk when this returns.

        `timestamp` in milliseconds since 1970 (UTC), now by default. Raises InputError, and writes nothing,
        for a name that MLflow would refuse.
        """
        if timestamp is None:
            timestamp = time.time_ns() // 1_000_000
        lines = []
        for key, number in metrics.items():
            check_name(key)
            fields = {"key": key, "value": _plain(float(number))}
            lines.append(json.dumps(fields | {"step": int(step), "timestamp": int(timestamp)}) + "\n")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        _append(self.path, "".join(lines).encode())

    def append_missing(self, values: Mapping[int, Mapping[str, float]]) -> None:
        """Write metrics by step, except those it holds: a command that resumes after it was killed doubles nothing."""
        known = {(entry.key, entry.step) for entry in self.entries()}
        for step, metrics in values.items():
            new = {key: value for key, value in metrics.items() if (key, step) not in known}
            if new:
                self.append(new, step=step)

    def append_changed(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Write the metrics of one step, except those that it holds with this very value.

        If a metric is measured again, on other text of the same name, MLflow shows the value written last.
        """
        latest = {entry.key: repr(entry.value) for entry in self.entries() if entry.step == step}
        new = {key: value for key, value in metrics.items() if latest.get(key) != repr(float(value))}
        if new:
            self.append(new, step)

    def entries(self) -> list[Entry]:
        """Read everything written so far, in order, without the lines that killed writers left half-written.

        Raises InputError for a line that no writer of this class can have left behind.
        """
        if not self.path.exists():
            return []
        lines = self.path.read_bytes().split(b"\n")[:-1]
        cut_off = _CUT_OFF.rstrip(b"\n")
        return [self._parse(line, number) for number, line in enumerate(lines, start=1) if not line.endswith(cut_off)]

    def _parse(self, line: bytes, number: int) -> Entry:
        try:
            fields = json.loads(line)
            value = math.nan if fields["value"] is None else float(fields["value"])
            return Entry(fields["key"], value, fields["step"], fields["timestamp"])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{self.path}: line {number} is damaged ({error}); remove the line") from error


def _append(path: Path, lines: bytes) -> None:
    """Put whole lines at the end of a file, on the disk, in one write, so that they stay together."""
    file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        size = os.fstat(file).st_size
        if size and os.pread(file, 1, size - 1) != b"\n":
            # Left by a killed writer, or just being written by another: nothing is cut from the file for that.
            lines = _CUT_OFF + lines
        if os.write(file, lines) != len(lines):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        os.fsync(file)
    finally:
        os.close(file)


def _plain(value: float) -> float | str | None:
    """What JSON has of a number; `float` reads the text of an infinite one."""
    if math.isnan(value):
        return None
    return value if math.isfinite(value) else f"{'-' if value < 0 else ''}Infinity"


def check_name(key: str) -> None:
    """Raise InputError unless MLflow takes `key` as the name of a metric or parameter."""
    if not _NAME.fullmatch(key) or len(key) > _LONGEST_NAME:
        raise InputError(
            f"{key!r} is no name for a metric or parameter: use at most {_LONGEST_NAME} letters, digits,"
            " spaces and any of _ - . : /"
        )
    if posixpath.normpath(key) != key or key.startswith(("/", "..")) or key == ".":
        raise InputError(f"{key!r} is no name for a metric or parameter: it must be a relative, normal path")
