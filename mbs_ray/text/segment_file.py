"""A calibration set on disk: one parquet row per segment, named and described by its fingerprint."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from mbs_ray.errors import InputError
from mbs_ray.files import appearing
from mbs_ray.text.language_draw import LanguageSegments
from mbs_ray.text.redaction import all_without_secrets
from mbs_ray.text.shards import DIGEST_BYTES, Source

METADATA_KEY = b"mbs_ray"
ROW_GROUP_TOKENS = 2**17
_OF_SOURCES = ("documents", "digests", "beginnings")


@dataclass(frozen=True, eq=False)
class Segments:
    """n segments of L tokens in memory.

    `token_ids` int32 [n, L]; `document_index` int16 [n, L], the entry of the segment's `documents` a token belongs
    to, -1 for separators and special tokens; `bytes` uint32 [n, L] (uint16 in files of earlier
    versions), UTF-8 bytes of text a token stands for;
    `language` and `documents` have n entries.
    """

    token_ids: npt.NDArray[np.int32]
    document_index: npt.NDArray[np.int16]
    bytes: npt.NDArray[np.uint32] | npt.NDArray[np.uint16]
    language: list[str]
    documents: list[list[str]]

    def __len__(self) -> int:
        return len(self.token_ids)


@dataclass(frozen=True)
class SegmentSet:
    """A written calibration or evaluation set. `allocation` counts its segments; `facts` tell how it was drawn."""

    path: Path
    fingerprint: str
    sequence_length: int
    allocation: Mapping[str, int]
    facts: Mapping[str, Mapping[str, int]]

    @classmethod
    def open(cls, path: Path) -> "SegmentSet":
        """Open a written set. InputError if the file is not one that `write_segments` wrote."""
        try:
            schema = pq.read_schema(path)
            schema.field("digests")  # files of earlier versions lack them
            metadata = json.loads(schema.metadata[METADATA_KEY])
            return cls(
                path,
                metadata["fingerprint"],
                metadata["request"]["sequence_length"],
                metadata["allocation"],
                metadata["facts"],
            )
        except (OSError, pa.ArrowException, ValueError, KeyError, TypeError):
            raise InputError(f"{path}: not a file of segments, or a damaged one") from None

    def __len__(self) -> int:
        return sum(self.allocation.values())

    def read(self) -> Segments:
        """Read all segments."""
        return self.rows(0, len(self))

    def rows(self, start: int, stop: int) -> Segments:
        """Read segments start…stop-1; only the row groups that hold them are read."""
        table = self._table(start, stop)
        return Segments(
            self._matrix(table, "token_ids"),
            self._matrix(table, "document_index"),
            self._matrix(table, "bytes"),
            table["language"].to_pylist(),
            table["documents"].to_pylist(),
        )

    def token_ids(self, start: int, stop: int) -> npt.NDArray[np.int32]:
        """Read nothing but the token ids of segments start…stop-1, [segments, sequence_length]."""
        return self._matrix(self._table(start, stop, ["token_ids"]), "token_ids")

    def _table(self, start: int, stop: int, columns: Sequence[str] | None = None) -> pa.Table:
        if not 0 <= start < stop <= len(self):
            raise IndexError(f"rows {start} to {stop} of {len(self)}")
        with pq.ParquetFile(self.path) as file:
            group_rows = file.metadata.row_group(0).num_rows
            groups = range(start // group_rows, -(-stop // group_rows))
            table = file.read_row_groups(list(groups), columns=columns)
        return table.slice(start - groups[0] * group_rows, stop - start)

    def sources(self) -> dict[str, list[Source]]:
        """List the documents that have a token in a segment, each once, by language."""
        table = pq.read_table(self.path, columns=["language", *_OF_SOURCES])
        found: dict[str, dict[Source, None]] = {}
        of_segments = zip(*(table[name].to_pylist() for name in _OF_SOURCES), strict=True)
        for language, columns in zip(table["language"].to_pylist(), of_segments, strict=True):
            found.setdefault(language, {}).update(dict.fromkeys(map(Source, *columns)))
        return {language: list(sources) for language, sources in found.items()}

    def _matrix(self, table: pa.Table, column: str) -> npt.NDArray[Any]:
        return table[column].combine_chunks().flatten().to_numpy().reshape(-1, self.sequence_length)


def write_segments(
    path: Path, fingerprint: str, request: Mapping[str, Any], drawn: Mapping[str, LanguageSegments]
) -> SegmentSet:
    """Writes the segments of all languages, in the order given, and gives them their name only when complete."""
    length = request["sequence_length"]
    metadata = {
        "fingerprint": fingerprint,
        "request": all_without_secrets(request),
        "allocation": {language: len(result.segments) for language, result in drawn.items()},
        "facts": {language: result.facts for language, result in drawn.items()},
    }
    schema = pa.schema(
        {
            "language": pa.string(),
            "token_ids": pa.list_(pa.int32(), length),
            "document_index": pa.list_(pa.int16(), length),
            "bytes": pa.list_(pa.uint32(), length),
            "documents": pa.list_(pa.string()),
            "digests": pa.list_(pa.binary(DIGEST_BYTES)),
            "beginnings": pa.list_(pa.string()),
        },
        metadata={METADATA_KEY: json.dumps(metadata, ensure_ascii=False)},
    )
    rows = ((language, segment) for language, result in drawn.items() for segment in result.segments)
    with appearing(path) as unfinished, pq.ParquetWriter(unfinished, schema) as writer:
        while group := list(islice(rows, max(1, ROW_GROUP_TOKENS // length))):
            columns: dict[str, Any] = {
                "language": [language for language, _ in group],
                "documents": [list(segment.documents) for _, segment in group],
                "digests": [[source.digest for source in segment.sources] for _, segment in group],
                "beginnings": [[source.beginning for source in segment.sources] for _, segment in group],
            }
            for name in ("token_ids", "document_index", "bytes"):
                flat = pa.array(np.concatenate([getattr(segment, name) for _, segment in group]))
                kind = schema.field(name).type.value_type
                columns[name] = pa.FixedSizeListArray.from_arrays(flat.cast(kind), length)
            writer.write_table(pa.table(columns, schema=schema), row_group_size=len(group))
    return SegmentSet.open(path)
