"""Parquet: a unit, and a part, is a row group; only the text column is read.

A row group's extent is taken from the footer: the bytes its text takes before compression. Where a writer kept equal
texts of a group but once, that is too few; columns of categories are therefore counted, by reading them when the file
is opened.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mbs_ray.errors import InputError
from mbs_ray.text.conversations import FIELDS, MalformedConversationError, conversation_text
from mbs_ray.text.shards import DECODED_PER_TOKENIZED, Addressed, Document, Wanted

_LENGTH_BYTES = 4  # stand before each text of a plain page
Opener = Callable[[str], BinaryIO]


@dataclass(frozen=True)
class ParquetShard:
    """The text column of a file at `location`: a path, or what `opener` opens. With `chat` it holds messages."""

    name: str
    location: str
    text_column: str
    extents: tuple[int, ...]
    identity: tuple[str, ...]
    opener: Opener | None = None
    chat: bool = False

    @property
    def unit_count(self) -> int:
        return len(self.extents)

    def spot_bytes(self, part: int, wanted: int) -> int:
        extent = self.extents[part]
        return extent if self.opener is not None else min(extent, wanted) + extent // DECODED_PER_TOKENIZED

    @cached_property
    def metadata(self) -> pq.FileMetaData:
        """The footer, read once by whoever reads row groups."""
        with opened(self.location, self.opener) as file:
            return file.metadata

    def read(self, units: Sequence[int]) -> Iterator[Iterator[Document]]:
        with opened(self.location, self.opener, self.metadata) as file:
            for unit in units:
                yield (one.document for one in self._addressed(file, unit, Wanted()))

    def addressed(self, part: int, wanted: Wanted) -> Iterator[Addressed]:
        with opened(self.location, self.opener, self.metadata) as file:
            yield from self._addressed(file, part, wanted)

    def _addressed(self, file: pq.ParquetFile, row_group: int, wanted: Wanted) -> Iterator[Addressed]:
        """Every text has as many addresses as bytes and one, scaled so that they fill the extent of the row group."""
        first_row = sum(file.metadata.row_group(group).num_rows for group in range(row_group))
        if self.chat:
            texts = _column(file, row_group, self.text_column, self.location)
            sizes = _content_bytes(texts)
        else:
            texts = _texts(file, row_group, self.text_column, self.location)
            sizes = pc.fill_null(pc.binary_length(texts), 0).to_numpy()
        places = np.where(texts.is_valid().to_numpy(zero_copy_only=False), sizes + 1, 0)
        ends = np.cumsum(places) * (self.extents[row_group] / max(int(places.sum()), 1))
        row = 0
        while (row := max(row, int(np.searchsorted(ends, wanted.start, side="right")))) < len(texts):
            if places[row] and (found := self._text(texts[row], first_row + row)) is not None:
                begin = float(ends[row - 1]) if row else 0.0
                yield Addressed(begin, float(ends[row]), Document(f"{self.name}#{first_row + row}", *found))
            row += 1

    def _text(self, value: pa.Scalar, row: int) -> tuple[str, int] | None:
        """Return the text of a row and its bytes."""
        try:
            if self.chat:
                return conversation_text(value.as_py(), self.text_column)
            encoded = value.as_buffer().to_pybytes()
            return encoded.decode(), len(encoded)
        except UnicodeDecodeError:
            raise InputError(f"{self.location}: row {row} is not valid UTF-8") from None
        except MalformedConversationError as error:
            raise InputError(f"{self.location}: row {row} {error}") from None


def row_group_extents(
    location: str, text_column: str, opener: Opener | None = None, chat: bool = False
) -> tuple[int, ...]:
    """Extents of a file's row groups, none where it has no text.

    Reads the footer, and a column of categories. InputError for a truncated or corrupt file, or one without that column
    of text; with `chat`, of messages.
    """
    with opened(location, opener) as file, _read_as_text(location):
        kind = _kind(file.schema_arrow, text_column, location, chat)
        groups = range(file.metadata.num_row_groups)
        if pa.types.is_null(kind):
            return ()
        if pa.types.is_dictionary(kind):
            extents = [_counted(_texts(file, group, text_column, location)) for group in groups]
        else:
            leaves = _leaves(file.metadata, text_column, location) if chat else [text_column]
            footer = file.metadata
            extents = [sum(_from_footer(footer, group, leaf, location) for leaf in leaves) for group in groups]
    return tuple(extents) if any(extents) else ()


def opened(location: str, opener: Opener | None, metadata: pq.FileMetaData | None = None) -> pq.ParquetFile:
    """InputError where it is no file of parquet. With its `metadata` at hand the footer is not read again."""
    try:
        return pq.ParquetFile(opener(location) if opener else location, metadata=metadata)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{location}: not a readable parquet file ({_one_line(error)})") from None


@contextmanager
def _read_as_text(location: str) -> Iterator[None]:
    try:
        yield
    except UnicodeDecodeError as error:
        raise InputError(f"{location}: not a readable parquet file (a name that is no UTF-8: {error})") from None


def _kind(schema: pa.Schema, text_column: str, location: str, chat: bool) -> pa.DataType:
    if (count := schema.names.count(text_column)) != 1:
        what = f"{count} columns named" if count else "no column"
        raise InputError(f"{location}: {what} {text_column!r}; its columns: {', '.join(schema.names)}")
    kind = schema.field(text_column).type
    if chat:
        if not pa.types.is_null(kind) and not _holds_messages(kind):
            raise InputError(
                f"{location}: column {text_column!r} holds {kind}, not messages: lists of "
                + " or ".join(f"{{{', '.join(names)}}}" for names in FIELDS)
            )
        return kind
    own = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not any(
        is_kind(own)
        for is_kind in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null)
    ):
        raise InputError(f"{location}: column {text_column!r} holds {kind}, not text")
    return kind


def _holds_messages(kind: pa.DataType) -> bool:
    of_lists = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return of_lists and pa.types.is_struct(kind.value_type) and _words(kind.value_type) is not None


def _words(kind: pa.StructType) -> str | None:
    """Return the field that holds the words of a message."""
    names = {field.name for field in kind}
    return next((words for speaker, words in FIELDS if {speaker, words} <= names), None)


def _leaves(metadata: pq.FileMetaData, column: str, location: str) -> list[str]:
    """Return the leaves of a column of messages that hold their words."""
    paths = [metadata.schema.column(leaf).path for leaf in range(metadata.num_columns)]
    own = [path for path in paths if path.startswith(f"{column}.")]
    found = [path for path in own if path.rpartition(".")[2] in [*(words for _, words in FIELDS), "text"]]
    if not found:
        raise InputError(f"{location}: column {column!r} has no contents of messages")
    return found


def _column(file: pq.ParquetFile, row_group: int, column: str, location: str) -> pa.Array:
    try:
        return pa.concat_arrays(file.read_row_group(row_group, columns=[column]).column(0).chunks)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{location}: row group {row_group} is unreadable ({_one_line(error)})") from None


def _content_bytes(messages: pa.Array) -> np.ndarray:
    """Count the bytes of the contents in each row; those of parts are counted as one for each message."""
    if pa.types.is_null(messages.type):
        return np.zeros(len(messages), np.int64)
    own = messages.flatten()
    words = own.field(_words(own.type))
    text = pa.types.is_string(words.type) or pa.types.is_large_string(words.type)
    sizes = pc.fill_null(pc.binary_length(words), 0).to_numpy() if text else np.ones(len(words), np.int64)
    before = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
    reached = np.cumsum(pc.fill_null(pc.list_value_length(messages), 0).to_numpy())
    return np.diff(before[reached], prepend=0)


def _texts(file: pq.ParquetFile, row_group: int, text_column: str, location: str) -> pa.LargeBinaryArray:
    try:
        column = file.read_row_group(row_group, columns=[text_column]).column(0)
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        return pa.concat_arrays([pa.array([], pa.large_binary()), *column.cast(pa.large_binary()).chunks])
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{location}: row group {row_group} is unreadable ({_one_line(error)})") from None


def _counted(texts: pa.LargeBinaryArray) -> int:
    return len(texts) - texts.null_count + int(pc.sum(pc.binary_length(texts)).as_py() or 0)


def _from_footer(metadata: pq.FileMetaData, row_group: int, text_column: str, location: str) -> int:
    (leaf,) = (leaf for leaf in range(metadata.num_columns) if metadata.schema.column(leaf).path == text_column)
    column = metadata.row_group(row_group).column(leaf)
    if column.physical_type != "BYTE_ARRAY":
        # A damaged footer: to ask for the statistics of such a column may end the process.
        raise InputError(f"{location}: row group {row_group} says that its texts are {column.physical_type}")
    statistics = column.statistics
    nulls = statistics.null_count if statistics is not None and statistics.has_null_count else 0
    texts = column.num_values - nulls
    return max(column.total_uncompressed_size - _LENGTH_BYTES * texts, texts) if texts > 0 else 0


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
