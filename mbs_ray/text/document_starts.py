"""Where lines and documents begin in a file of text, found from any byte of it."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

BOM = b"\xef\xbb\xbf"
_BLANK_LINE = re.compile(rb"\n[ \t\r\x0b\x0c]*\n")
_FIRST_STEP, _STEP_GROWTH = 2**12, 4


def is_blank(line: bytes) -> bool:
    """Tell whether a line holds nothing but white space, or a byte order mark."""
    return not line.removeprefix(BOM).strip()


def lines_from(stream: BinaryIO, start: int) -> Iterator[tuple[int, bytes]]:
    """(byte offset, line) of the lines that start at or after `start`, which is 0 or 1 where the stream cannot seek."""
    if stream.seekable():
        stream.seek(max(0, start - 1))
    offset = start - 1 + len(stream.readline()) if start else 0
    for line in stream:
        yield offset, line
        offset += len(line)


def start_of_line(stream: BinaryIO, position: int) -> int:
    """Offset of the line that holds the byte at `position`."""
    step = _FIRST_STEP
    reached = position
    while reached:
        start = max(0, reached - step)
        stream.seek(start)
        if (found := stream.read(reached - start).rfind(b"\n")) >= 0:
            return start + found + 1
        reached, step = start, step * _STEP_GROWTH
    return 0


def start_of_paragraph(stream: BinaryIO, position: int) -> int:
    """An offset from which on the first document to begin is the one that holds the byte at `position`, if one does."""
    step = _FIRST_STEP
    start = position
    while start:
        start = max(0, position - step)
        stream.seek(start)
        if blank := [*_BLANK_LINE.finditer(stream.read(position - start))]:
            return start + blank[-1].end()
        step *= _STEP_GROWTH
    return 0


def follows_blank_line(path: Path, offset: int) -> bool:
    """Tell whether the line before the one at `offset` is blank, or is none."""
    position = max(0, offset - 1)
    with path.open("rb") as file:
        while position:
            length = min(4096, position)
            position -= length
            file.seek(position)
            _, newline, rest = file.read(length).rpartition(b"\n")
            if rest.strip(b" \t\r\n\x0b\x0c" + BOM):
                return False
            if newline:
                return True
    return True
