"""Parquet: a unit is a row group; only the text column is read."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mbs_ray.errors import InputError
from mbs_ray.text.shards import Document, file_digest


@dataclass(frozen=True)
class ParquetShard:
    name: str
    path: Path
    text_column: str
    unit_count: int
    identity: tuple[str, ...]
    validated_by_reading = False

    @classmethod
    def open(cls, path: Path, name: str, text_column: str) -> "ParquetShard":
        """Reads the footer. InputError for a truncated or corrupt file, or without that column of text."""
        with _opened(path) as file:
            metadata, schema = file.metadata, file.schema_arrow
        if text_column not in schema.names:
            raise InputError(f"{path}: no column {text_column!r}; its columns: {', '.join(schema.names)}")
        kind = schema.field(text_column).type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
            raise InputError(f"{path}: column {text_column!r} holds {kind}, not text")
        digest = file_digest(path, footer_bytes=metadata.serialized_size)
        identity = (name, str(path.stat().st_size), digest)
        units = metadata.num_row_groups if metadata.num_rows else 0
        return cls(name, path, text_column, units, identity)

    def read(self, units: Sequence[int]) -> Iterator[Iterator[Document]]:
        with _opened(self.path) as file:
            sizes = (file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups))
            first_rows = list(accumulate(sizes, initial=0))
            for unit in units:
                yield self._documents(file, unit, first_rows[unit])

    def _documents(self, file: pq.ParquetFile, row_group: int, first_row: int) -> Iterator[Document]:
        try:
            column = file.read_row_group(row_group, columns=[self.text_column]).column(0)
        except (OSError, pa.ArrowException) as error:
            raise InputError(f"{self.path}: row group {row_group} is unreadable ({_one_line(error)})") from None
        for row, value in enumerate(column, start=first_row):
            if not value.is_valid:
                continue
            encoded = value.as_buffer().to_pybytes()
            try:
                text = encoded.decode()
            except UnicodeDecodeError:
                raise InputError(f"{self.path}: row {row} is not valid UTF-8") from None
            yield Document(f"{self.name}#{row}", text, len(encoded))


def _opened(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path}: not a readable parquet file ({_one_line(error)})") from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
