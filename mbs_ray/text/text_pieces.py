"""Documents in a stream of bytes: a field of each JSON line, or paragraphs parted by blank lines."""

import json
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NamedTuple

from mbs_ray.text.conversations import MalformedConversationError, conversation_text
from mbs_ray.text.document_starts import BOM, is_blank, lines_from
from mbs_ray.text.shards import Wanted


class Piece(NamedTuple):
    """The text of a document, its UTF-8 bytes, and where it stands in the stream: begin ≤ byte < end."""

    text: str
    size: int
    begin: int
    end: int


class MalformedTextError(Exception):
    """What is wrong with the line at an offset of the stream."""

    def __init__(self, offset: int, what: str) -> None:
        super().__init__(what)
        self.offset = offset


def json_lines(
    stream: BinaryIO, start: int, stop: int | None, field: str, wanted: Wanted, chat: bool = False
) -> Iterator[Piece]:
    """Yield the lines that start at or after `start` and before `stop`; the unwanted are passed over unread.

    With `chat` the field holds messages.
    """
    for offset, line in lines_from(stream, start):
        if stop is not None and offset >= stop:
            return
        end = offset + len(line)
        if end <= wanted.start or is_blank(line):
            continue
        try:
            found = _text(_field(line.removeprefix(BOM), offset, field), offset, field, chat)
        except UnicodeEncodeError:
            raise MalformedTextError(offset, f"holds half of a surrogate pair in field {field!r}") from None
        if found is not None:
            yield Piece(*found, offset, end)


def paragraphs(
    stream: BinaryIO, start: int, stop: int | None, follows_blank_line: Callable[[int], bool]
) -> Iterator[Piece]:
    """Yield the paragraphs that start from `start` to before `stop`; the first line asks `follows_blank_line`."""
    lines: list[bytes] = []
    first = 0
    after_blank: bool | None = None
    for offset, line in lines_from(stream, start):
        if after_blank is None:
            after_blank = follows_blank_line(offset)
        if is_blank(line):
            if lines:
                yield _paragraph(lines, first)
            lines, after_blank = [], True
        elif lines:
            lines.append(line)
        elif after_blank and (stop is None or offset < stop):
            lines, first, after_blank = [line], offset, False
        if not lines and stop is not None and offset >= stop:
            return
    if lines:
        yield _paragraph(lines, first)


def _text(value: Any, offset: int, field: str, chat: bool) -> tuple[str, int] | None:
    """Return the text and its bytes."""
    if chat:
        try:
            return conversation_text(value, field)
        except MalformedConversationError as error:
            raise MalformedTextError(offset, str(error)) from None
    if value is None:
        return None
    if not isinstance(value, str):
        raise MalformedTextError(offset, f"has no text in field {field!r}")
    return value, len(value.encode())


def _field(line: bytes, offset: int, field: str) -> Any:
    try:
        record = json.loads(line.decode())
    except UnicodeDecodeError:
        raise MalformedTextError(offset, "is not valid UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise MalformedTextError(offset, f"is not valid JSON ({getattr(error, 'msg', error)})") from None
    if not isinstance(record, dict) or field not in record:
        raise MalformedTextError(offset, f"has no field {field!r}")
    return record[field]


def _paragraph(lines: list[bytes], begin: int) -> Piece:
    offset = begin
    for line in lines:
        try:
            line.decode()
        except UnicodeDecodeError:
            raise MalformedTextError(offset, "is not valid UTF-8") from None
        offset += len(line)
    encoded = b"".join(lines).removeprefix(BOM).rstrip(b"\r\n")
    return Piece(encoded.decode(), len(encoded), begin, offset)
