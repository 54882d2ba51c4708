"""The file an evaluation leaves: one parquet row per scored token."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from mbs_ray.evaluation.text_warnings import UNKNOWN_KEY
from mbs_ray.files import appearing
from mbs_ray.text.segment_file import Segments, SegmentSet
from mbs_ray.text.text_counts import unknown_shares

_TEXT = pa.dictionary(pa.int32(), pa.string())
#: Tokens that are written together: memory does not grow with the text.
ROW_GROUP_TOKENS = 2**20
SCHEMA = pa.schema(
    [
        ("nll", pa.float32()),
        ("language", _TEXT),
        ("document", _TEXT),
        ("bytes", pa.uint32()),
        ("segment", pa.int32()),
    ]
)


def write_token_scores(
    path: Path, segments: SegmentSet, nll: torch.Tensor, is_argmax: torch.Tensor | None = None
) -> None:
    """Write nll in nats [segments, length - 1] of all tokens that are text, about a million of them at a time.

    A segment scores its tokens 2…n; separators between documents are left out. ``bytes`` are the
    UTF-8 bytes of text the token stands for. ``is_argmax`` [segments, length - 1] bool, where it is given, becomes
    a column of that name. Where text was unknown to the tokenizer, the file's metadata have the share of each
    language's bytes under ``UNKNOWN_KEY``.
    """
    schema = SCHEMA if is_argmax is None else SCHEMA.append(pa.field("is_argmax", pa.bool_()))
    if unknown := unknown_shares(segments.facts):
        schema = schema.with_metadata({UNKNOWN_KEY: json.dumps(unknown, ensure_ascii=False)})
    step = max(1, ROW_GROUP_TOKENS // segments.sequence_length)
    with appearing(path) as unfinished, pq.ParquetWriter(unfinished, schema, compression="zstd") as writer:
        for start in range(0, len(segments), step):
            rows = slice(start, min(start + step, len(segments)))
            columns, scored = _columns(segments.rows(rows.start, rows.stop), start, nll[rows].numpy())
            if is_argmax is not None:
                columns["is_argmax"] = pa.array(is_argmax[rows].numpy()[scored])
            writer.write_table(pa.table(columns, schema=schema))


def _columns(content: Segments, first_segment: int, values: np.ndarray) -> tuple[dict[str, pa.Array], np.ndarray]:
    """Return the columns of some segments' tokens, and which of their tokens are in them, [segments, length - 1]."""
    own = content.document_index[:, 1:]
    scored = own >= 0
    segment = np.broadcast_to(np.arange(len(own), dtype=np.int32)[:, None], own.shape)[scored]
    first = np.cumsum([0, *(len(documents) for documents in content.documents)])[:-1]
    names = [name for documents in content.documents for name in documents]
    document = (own + first[:, None])[scored]
    columns = {
        "nll": pa.array(values[scored], pa.float32()),
        "language": _dictionary(content.language, segment),
        "document": _dictionary(names, document),
        "bytes": pa.array(content.bytes[:, 1:][scored], pa.uint32()),
        "segment": pa.array(segment + first_segment, pa.int32()),
    }
    return columns, scored


def _dictionary(names: Sequence[str], index: np.ndarray) -> pa.DictionaryArray:
    """Encode ``names[index]`` as a dictionary array without repeated names."""
    distinct, position = np.unique(np.array(names, dtype=object), return_inverse=True)
    return pa.DictionaryArray.from_arrays(
        pa.array(position[index].astype(np.int32)), pa.array(distinct.tolist(), pa.string())
    )


class RequestScore(NamedTuple):
    """Scores of the tokens 2…n of a sequence: ``nll`` in nats float32, ``is_argmax`` bool."""

    nll: npt.NDArray[np.float32]
    is_argmax: npt.NDArray[np.bool_]
