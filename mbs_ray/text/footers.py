"""Footers of parquet files, read in a process of their own: some damaged ones end the process that reads them."""

import json
import subprocess
import sys
import threading
from types import TracebackType

from mbs_ray.errors import InputError
from mbs_ray.text.parquet_shard import row_group_extents

#: The packages of this process, wherever the other one is started.
_PROGRAM = "import sys; sys.path[:] = {path!r}; from mbs_ray.text.footers import answer; answer()"


class FooterReader:
    """A process that reads footers one after the other, started when it is first asked; several threads may ask."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> "FooterReader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.communicate()  # which closes its input, and so ends it

    def extents(self, location: str, text_column: str, chat: bool = False) -> tuple[int, ...]:
        """See :func:`row_group_extents`. Raises :class:`InputError` also where the footer ends its reader."""
        with self._lock:
            if self._process is None:
                self._process = self._start()
            told = self._ask(self._process, json.dumps([location, text_column, chat]))
            if not told:
                self._process.communicate()
                self._process = None
                raise InputError(f"{location}: not a readable parquet file (its footer ends the process that reads it)")
        content = json.loads(told)
        if "error" in content:
            raise InputError(content["error"])
        return tuple(content["extents"])

    @staticmethod
    def _start() -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-c", _PROGRAM.format(path=sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
        )

    @staticmethod
    def _ask(process: "subprocess.Popen[str]", question: str) -> str:
        """Return one line, empty where the process ended."""
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(question + "\n")
            process.stdin.flush()
        except BrokenPipeError:
            return ""
        return process.stdout.readline()


def answer() -> None:
    """Answer questions, a line each, until there are no more."""
    for line in sys.stdin:
        location, text_column, chat = json.loads(line)
        try:
            told: dict[str, object] = {"extents": row_group_extents(location, text_column, chat=chat)}
        except InputError as error:
            told = {"error": str(error)}
        print(json.dumps(told), flush=True)
