"""JSON lines and plain text, uncompressed or compressed.

Addresses are bytes of the decompressed text. Of an uncompressed file only what stands around an address is read; of a
compressed one, its part up to there. A unit of an uncompressed file holds the documents that *start* in its byte range,
so units need no index.
"""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from mbs_ray.errors import InputError
from mbs_ray.files import file_digest
from mbs_ray.text.compressed_parts import Decoder, compressed_parts
from mbs_ray.text.document_starts import follows_blank_line, start_of_line, start_of_paragraph
from mbs_ray.text.file_facts import FactsCache, FileFacts
from mbs_ray.text.shards import DECODED_PER_TOKENIZED, Addressed, Document, Wanted
from mbs_ray.text.text_pieces import MalformedTextError, Piece, json_lines, paragraphs

UNIT_BYTES = 2**20
#: A gap between two places that is read over rather than jumped over.
JUMP_BYTES = 2**16
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}


@dataclass(frozen=True)
class TextShard:
    """A file of JSON lines, whose field `text_column` is read, or of plain text where that is None.

    With `chat` the field holds the messages of a conversation.

    In plain text blank lines part the documents, as in CC-100. A byte order mark before a document is no part of it.
    """

    name: str
    path: Path
    text_column: str | None
    compression: str | None
    unit_count: int
    parts: tuple[tuple[int, int], ...]
    identity: tuple[str, ...]
    chat: bool = False

    @classmethod
    def open(cls, path: Path, name: str, text_column: str | None, cache: FactsCache, chat: bool = False) -> "TextShard":
        """Read it whole, if it was not before, and its first document. InputError where that is malformed."""
        compression = COMPRESSIONS.get(path.suffix)
        size = path.stat().st_size
        units = min(size, 1) if compression else -(-size // UNIT_BYTES)
        shard = cls(name, path, text_column, compression, units, (), (), chat)
        facts = cache.of(path, f"{'messages' if chat else 'text'} {text_column}", lambda _: shard._measured())
        return replace(shard, parts=facts.parts, identity=(name, str(size), facts.digest))

    @property
    def extents(self) -> tuple[int, ...]:
        return tuple(extent for _, extent in self.parts)

    def spot_bytes(self, part: int, wanted: int) -> int:
        _, extent = self.parts[part]
        if self.text_column is None:
            return extent  # without a blank line all of it is one document
        return min(extent, wanted) + (extent // DECODED_PER_TOKENIZED if self.compression else 0)

    def read(self, units: Sequence[int]) -> Iterator[Iterator[Document]]:
        for unit in units:
            yield self._documents(unit)

    def addressed(self, part: int, wanted: Wanted) -> Iterator[Addressed]:
        pieces = self._of_part(part, wanted) if self.compression else self._around(wanted)
        inside = f"[{part}]" if len(self.parts) > 1 else ""
        with self._readable(part):
            for text, size, begin, end in pieces:
                yield Addressed(begin, end, Document(f"{self.name}{inside}@{begin}", text, size))

    def _documents(self, unit: int) -> Iterator[Document]:
        start, stop = (0, None) if self.compression else (unit * UNIT_BYTES, (unit + 1) * UNIT_BYTES)
        with self._readable(0), self._stream() as stream:
            for row, (text, size, begin, _) in enumerate(self._pieces(stream, start, stop, Wanted())):
                place = f"#{row}" if self.compression else f"@{begin}"
                yield Document(f"{self.name}{place}", text, size)

    def _around(self, wanted: Wanted) -> Iterator[Piece]:
        """Of an uncompressed file, with jumps over what is not wanted."""
        start_of = start_of_line if self.text_column is not None else start_of_paragraph
        with self._stream() as stream:
            jumped = True
            while jumped:
                jumped = False
                for piece in self._pieces(stream, start_of(stream, int(wanted.start)), None, wanted):
                    if piece.end > wanted.start:
                        yield piece
                    if jumped := wanted.start > piece.end + JUMP_BYTES:
                        break

    def _of_part(self, part: int, wanted: Wanted) -> Iterator[Piece]:
        """Lines that begin after the first line feed of the part, up to and with the first one of the next part."""
        offset, next_offset = self.parts[part][0], self.parts[part + 1][0] if part + 1 < len(self.parts) else None
        decoder = Decoder(self.path, self.compression or "", offset, next_offset)
        with io.BufferedReader(decoder) as stream:
            for piece in self._pieces(stream, 1 if part else 0, None, wanted):
                if decoder.end_of_part is not None and piece.begin > decoder.end_of_part:
                    return
                if piece.end > wanted.start:
                    yield piece

    def _pieces(self, stream: BinaryIO, start: int, stop: int | None, wanted: Wanted) -> Iterator[Piece]:
        if self.text_column is not None:
            return json_lines(stream, start, stop, self.text_column, wanted, self.chat)
        return paragraphs(stream, start, stop, lambda offset: follows_blank_line(self.path, offset))

    def _stream(self) -> BinaryIO:
        if self.compression:
            return io.BufferedReader(Decoder(self.path, self.compression))
        return self.path.open("rb")

    @contextmanager
    def _readable(self, part: int) -> Iterator[None]:
        try:
            yield
        except MalformedTextError as error:
            raise InputError(f"{self.path}: line {self._line_number(part, error.offset)} {error}") from None
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read ({' '.join(str(error).split())})") from None

    def _line_number(self, part: int, offset: int) -> int:
        """Number of the line at an offset of a part, counted from the beginning of the file."""
        number, read = 1, 0
        offset_of_part = self.parts[part][0] if part else 0  # while it is opened it has no parts yet
        decoder = Decoder(self.path, self.compression, 0, offset_of_part) if self.compression else None
        with io.BufferedReader(decoder) if decoder else self.path.open("rb") as stream:
            for line in stream:
                read += len(line)
                before = decoder.end_of_part if decoder and part else 0
                if before is not None and read > before + offset:
                    return number
                number += 1
        return number

    def _measured(self) -> FileFacts:
        with self._readable(0):
            parts = compressed_parts(self.path, self.compression) if self.compression else [(0, self._size())]
            next(self._documents(0), None)
            return FileFacts(file_digest(self.path), tuple((offset, extent) for offset, extent in parts))

    def _size(self) -> int:
        return self.path.stat().st_size
