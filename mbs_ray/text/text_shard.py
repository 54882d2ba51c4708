"""JSON lines and plain text: units of about 1 MiB, or the whole file where it is compressed.

A unit of an uncompressed file holds the documents that *start* in its byte range, so units need no index.
"""

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NoReturn

import pyarrow as pa

from mbs_ray.errors import InputError
from mbs_ray.text.shards import Document, file_digest

UNIT_BYTES = 2**20
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}


@dataclass(frozen=True)
class TextShard:
    """A file of JSON lines, whose field `text_column` is read, or of plain text where that is None.

    In plain text blank lines part the documents, as in CC-100.
    """

    name: str
    path: Path
    text_column: str | None
    compression: str | None
    unit_count: int
    identity: tuple[str, ...]
    validated_by_reading = True

    @classmethod
    def open(cls, path: Path, name: str, text_column: str | None) -> "TextShard":
        compression = COMPRESSIONS.get(path.suffix)
        size = path.stat().st_size
        units = 1 if compression else -(-size // UNIT_BYTES)
        return cls(name, path, text_column, compression, units, (name, str(size), file_digest(path)))

    def read(self, units: Sequence[int]) -> Iterator[Iterator[Document]]:
        for unit in units:
            yield self._documents(unit)

    def _documents(self, unit: int) -> Iterator[Document]:
        pieces = self._json_lines if self.text_column is not None else self._paragraphs
        try:
            with self._stream() as stream:
                if self.compression:
                    for row, (text, size, _) in enumerate(pieces(stream, 0, None)):
                        yield Document(f"{self.name}#{row}", text, size)
                else:
                    for text, size, offset in pieces(stream, unit * UNIT_BYTES, (unit + 1) * UNIT_BYTES):
                        yield Document(f"{self.name}@{offset}", text, size)
        except (OSError, pa.ArrowException) as error:
            raise InputError(f"{self.path}: cannot be read ({' '.join(str(error).split())})") from None

    def _stream(self) -> BinaryIO:
        if self.compression:
            # pyarrow reads all frames of both and reports truncation; zstandard reports none.
            return io.BufferedReader(pa.input_stream(str(self.path), compression=self.compression))
        return self.path.open("rb")

    def _json_lines(self, stream: BinaryIO, start: int, stop: int | None) -> Iterator[tuple[str, int, int]]:
        for offset, line in _lines(stream, start):
            if stop is not None and offset >= stop:
                return
            if not line.strip():
                continue
            try:
                record = json.loads(line.decode())
            except UnicodeDecodeError:
                self._fail(offset, "is not valid UTF-8")
            except (ValueError, RecursionError) as error:
                self._fail(offset, f"is not valid JSON ({getattr(error, 'msg', error)})")
            if not isinstance(record, dict) or self.text_column not in record:
                self._fail(offset, f"has no field {self.text_column!r}")
            text = record[self.text_column]
            if text is None:
                continue
            if not isinstance(text, str):
                self._fail(offset, f"has no text in field {self.text_column!r}")
            try:
                size = len(text.encode())
            except UnicodeEncodeError:
                self._fail(offset, f"holds half of a surrogate pair in field {self.text_column!r}")
            yield text, size, offset

    def _paragraphs(self, stream: BinaryIO, start: int, stop: int | None) -> Iterator[tuple[str, int, int]]:
        lines: list[bytes] = []
        first = 0
        after_blank: bool | None = None
        for offset, line in _lines(stream, start):
            if after_blank is None:
                after_blank = _follows_blank_line(self.path, offset)
            if not line.strip():
                if lines:
                    yield self._paragraph(lines, first)
                lines, after_blank = [], True
            elif lines:
                lines.append(line)
            elif after_blank and (stop is None or offset < stop):
                lines, first, after_blank = [line], offset, False
            if not lines and stop is not None and offset >= stop:
                return
        if lines:
            yield self._paragraph(lines, first)

    def _paragraph(self, lines: list[bytes], offset: int) -> tuple[str, int, int]:
        for line in lines:
            try:
                line.decode()
            except UnicodeDecodeError:
                self._fail(offset, "is not valid UTF-8")
            offset += len(line)
        encoded = b"".join(lines).rstrip(b"\r\n")
        return encoded.decode(), len(encoded), offset - sum(map(len, lines))

    def _fail(self, offset: int, what: str) -> NoReturn:
        with self._stream() as stream:
            number = 1
            while (offset := offset - len(stream.readline())) >= 0:
                number += 1
        raise InputError(f"{self.path}: line {number} {what}")


def _lines(stream: BinaryIO, start: int) -> Iterator[tuple[int, bytes]]:
    """(byte offset, line) of the lines that start at or after `start`."""
    offset = 0
    if start:
        stream.seek(start - 1)
        offset = start - 1 + len(stream.readline())
    for line in stream:
        yield offset, line
        offset += len(line)


def _follows_blank_line(path: Path, offset: int) -> bool:
    """Whether the line before the one at `offset` is blank, or is none."""
    position = max(0, offset - 1)
    with path.open("rb") as file:
        while position:
            length = min(4096, position)
            position -= length
            file.seek(position)
            _, newline, rest = file.read(length).rpartition(b"\n")
            if rest.strip():
                return False
            if newline:
                return True
    return True
