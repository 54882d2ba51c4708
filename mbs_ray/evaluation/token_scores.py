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
from mbs_ray.text.segment_file import SegmentSet
from mbs_ray.text.text_counts import unknown_shares

_TEXT = pa.dictionary(pa.int32(), pa.string())
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
    path: Path, segments: SegmentSet, nll: Sequence[torch.Tensor], is_argmax: torch.Tensor | None = None
) -> None:
    """Write nll in nats [segments, length - 1] (given in parts, in order) of all tokens that are text.

    A segment scores its tokens 2…n; separators between documents are left out. ``bytes`` are the
    UTF-8 bytes of text the token stands for. ``is_argmax`` [segments, length - 1] bool, where it is given, becomes
    a column of that name. Where text was unknown to the tokenizer, the file's metadata have the share of each
    language's bytes under ``UNKNOWN_KEY``.
    """
    content = segments.read()
    values = torch.cat(list(nll)).numpy()
    own = content.document_index[:, 1:]
    scored = own >= 0
    segment = np.broadcast_to(np.arange(len(own), dtype=np.int32)[:, None], own.shape)[scored]
    first = np.cumsum([0, *(len(documents) for documents in content.documents)])[:-1]
    names = [name for documents in content.documents for name in documents]
    document = (own + first[:, None])[scored]
    table = pa.table(
        {
            "nll": pa.array(values[scored], pa.float32()),
            "language": _dictionary([content.language[index] for index in range(len(own))], segment),
            "document": _dictionary(names, document),
            "bytes": pa.array(content.bytes[:, 1:][scored], pa.uint32()),
            "segment": pa.array(segment, pa.int32()),
        },
        schema=SCHEMA,
    )
    if is_argmax is not None:
        table = table.append_column("is_argmax", pa.array(is_argmax.numpy()[scored]))
    if unknown := unknown_shares(segments.facts):
        table = table.replace_schema_metadata({UNKNOWN_KEY: json.dumps(unknown, ensure_ascii=False)})
    with appearing(path) as unfinished:
        pq.write_table(table, unfinished, compression="zstd")


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
