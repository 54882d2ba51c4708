"""Members of gzip and frames of zstd: where each begins in its file, how long its text is at most, and their decoding.

A file of one member is one part, which can only be read from its beginning. Many small ones, as bgzip writes them or
appending leaves them, are put together to parts of about 1 MiB.
"""

import io
import mmap
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import zstandard

PART_BYTES = 2**20
CHUNK_BYTES = 2**16
#: zstd's own limit of a window (--long=31); a reader takes as much memory as the frame asks for, at most.
LARGEST_WINDOW = 2**31

_GZIP_HEADER = re.compile(rb"\x1f\x8b\x08[\x00-\x1f]", re.DOTALL)
_GZIP_TRIAL_BYTES = 2**16
_GZIP_HEADER_BYTES = 2**9
#: gzip keeps the length of a member modulo this. Text is taken to be packed 16 to 1 at most where that leaves a choice.
_GZIP_LENGTHS = 2**32
_GZIP_PACKING = 16
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_ZSTD_SKIPPABLE = b"\x2a\x4d\x18"
_ZSTD_BLOCK_BYTES = 2**17


class CompressedPart(NamedTuple):
    """Offset of its first member in the file, and an upper bound of the bytes that its members decode to."""

    offset: int
    extent: int


def compressed_parts(path: Path, compression: str) -> list[CompressedPart]:
    """Return the parts of a file. OSError names what is wrong: another compression, or an early end."""
    if path.stat().st_size == 0:
        return []
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        members = _gzip_members(content) if compression == "gzip" else _zstd_frames(content)
        return _together(members)


class Decoder(io.RawIOBase):
    """The text of a compressed file from the member at `offset` on, to the end of the file.

    `end_of_part` is the number of bytes decoded when the member at `next_offset` was come to; None before that.
    OSError where the file ends within a member or holds something else.
    """

    def __init__(self, path: Path, compression: str, offset: int = 0, next_offset: int | None = None) -> None:
        super().__init__()
        self._file = path.open("rb")
        self._file.seek(offset)
        self._compression = compression
        self._next_offset = next_offset
        self._offset = offset
        self._packed = b""
        self._text = memoryview(b"")
        self._decoded = 0
        self._member: Any = None
        self.end_of_part: int | None = None

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        while not self._text and self._fill():
            pass
        size = min(len(buffer), len(self._text))
        buffer[:size] = self._text[:size]
        self._text = self._text[size:]
        return size

    def _fill(self) -> bool:
        """Decode some more; False at the end of the file."""
        if not self._packed:
            self._packed = self._file.read(CHUNK_BYTES)
        if not self._packed:
            if self._member is not None:
                raise OSError("it ends too early")
            return False
        if self._member is None and not self._begin_member():
            return False
        try:
            self._text = memoryview(self._member.decompress(self._packed))
        except (zlib.error, zstandard.ZstdError) as error:
            raise OSError(str(error)) from None
        self._decoded += len(self._text)
        rest = self._member.unused_data
        if self._member.eof:
            self._member = None
        self._offset += len(self._packed) - len(rest)
        self._packed = rest
        return True

    def _begin_member(self) -> bool:
        if self._next_offset is not None and self._offset >= self._next_offset and self.end_of_part is None:
            self.end_of_part = self._decoded
        if self._compression == "gzip":
            # Zeros may fill the end of a gzip file, as on tapes.
            while not (rest := self._packed.lstrip(b"\0")):
                self._packed = self._file.read(CHUNK_BYTES)
                if not self._packed:
                    return False
            self._packed = rest
            self._member = zlib.decompressobj(wbits=31)
        else:
            self._member = zstandard.ZstdDecompressor(max_window_size=LARGEST_WINDOW).decompressobj()
        return True


def _together(members: Iterator[CompressedPart]) -> list[CompressedPart]:
    parts: list[CompressedPart] = []
    for offset, extent in members:
        if parts and parts[-1].extent + extent <= PART_BYTES:
            parts[-1] = CompressedPart(parts[-1].offset, parts[-1].extent + extent)
        else:
            parts.append(CompressedPart(offset, extent))
    return parts


def _gzip_members(content: mmap.mmap) -> Iterator[CompressedPart]:
    """Members begin where a header is found from which deflated data follow."""
    if not _GZIP_HEADER.match(content):
        raise OSError("it is not gzip")
    begins = [match.start() for match in _GZIP_HEADER.finditer(content) if _inflates(content, match.start())]
    if not begins or begins[0]:
        raise OSError("its first member is damaged")
    for begin, end in zip(begins, [*begins[1:], len(content)], strict=True):
        yield CompressedPart(begin, _gzip_extent(int.from_bytes(content[end - 4 : end], "little"), end - begin))


def _inflates(content: mmap.mmap, offset: int) -> bool:
    member = zlib.decompressobj(wbits=31)
    try:
        member.decompress(content[offset : offset + _GZIP_TRIAL_BYTES])
    except zlib.error:
        return False
    return True


def _gzip_extent(length: int, packed: int) -> int:
    """Return the largest length of text that is `length` modulo 2³² and plausible, so that no text lies beyond it."""
    at_most = max(packed * _GZIP_PACKING, length)
    if length < packed - packed // 1000 - _GZIP_HEADER_BYTES:
        return at_most  # what stands at the end is no length: zeros fill the file
    return length + (at_most - length) // _GZIP_LENGTHS * _GZIP_LENGTHS


def _zstd_frames(content: mmap.mmap) -> Iterator[CompressedPart]:
    """Frames are found by their blocks' headers, whose lengths need no decoding."""
    offset = 0
    while offset < len(content):
        if content[offset + 1 : offset + 4] == _ZSTD_SKIPPABLE and 0x50 <= content[offset] <= 0x5F:
            offset += 8 + int.from_bytes(content[offset + 4 : offset + 8], "little")
            continue
        if content[offset : offset + 4] != _ZSTD_MAGIC:
            raise OSError("it is not zstd")
        try:
            frame = zstandard.get_frame_parameters(content[offset : offset + 18])
            header = zstandard.frame_header_size(content[offset : offset + 18])
        except zstandard.ZstdError as error:
            raise OSError(str(error)) from None
        end, extent = _zstd_blocks(content, offset + header, min(frame.window_size or 1, _ZSTD_BLOCK_BYTES))
        end += 4 * frame.has_checksum
        if end > len(content):
            raise OSError("it ends too early")
        if frame.content_size != zstandard.CONTENTSIZE_UNKNOWN:
            extent = frame.content_size
        yield CompressedPart(offset, extent)
        offset = end
    if offset > len(content):
        raise OSError("it ends too early")


def _zstd_blocks(content: mmap.mmap, offset: int, block_bytes: int) -> tuple[int, int]:
    """Offset after the last block of a frame, and how much its blocks decode to at most."""
    extent, last = 0, False
    while not last:
        if offset + 3 > len(content):
            raise OSError("it ends too early")
        word = int.from_bytes(content[offset : offset + 3], "little")
        last, kind, size = bool(word & 1), word >> 1 & 3, word >> 3
        # Raw blocks hold their text; those of one repeated byte hold one; compressed ones do not tell.
        extent += size if kind < 2 else max(size, block_bytes)
        offset += 3 + (1 if kind == 1 else size)
    return offset, extent
