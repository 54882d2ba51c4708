"""Parquet files of how similar languages are to a model."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mbs_ray.evaluation.language_angles import Similarity
from mbs_ray.files import appearing


def write_vectors(path: Path, similarity: Similarity) -> None:
    """Write a row per block and language: tokens, vector (float32 list), cosines of its halves; whole or not at all.

    The cosine of a mixture's ``halves_experts`` is null in blocks without experts.
    """
    blocks, languages, width = similarity.vectors.shape
    flat = pa.array(similarity.vectors.reshape(-1))
    columns = {
        "block": pa.array(np.repeat(np.arange(blocks, dtype=np.int32), languages)),
        "language": pa.array(list(similarity.languages) * blocks),
        "tokens": pa.array(list(similarity.tokens) * blocks),
        "vector": pa.FixedSizeListArray.from_arrays(flat, width),
        **{
            f"halves_{statistic}": pa.array(values.reshape(-1), from_pandas=True)
            for statistic, values in similarity.halves.items()
        },
    }
    _write(path, pa.table(columns))


def write_matrices(path: Path, similarity: Similarity) -> None:
    """Write a row per block, statistic and ordered pair of languages: cosine, angle in degrees; whole or not at all."""
    rows: list[dict[str, Any]] = []
    for block in range(similarity.blocks):
        for statistic, blocks in similarity.measured.items():
            if block not in blocks:
                continue
            degrees = similarity.degrees(statistic, block).to_numpy()
            for (row, column), cosine in np.ndenumerate(similarity.cosines[statistic][block]):
                pair = {"language": similarity.languages[row], "other": similarity.languages[column]}
                values = {"cosine": float(cosine), "degrees": float(degrees[row, column])}
                rows.append({"block": block, "statistic": statistic, **pair, **values})
    _write(path, pa.Table.from_pylist(rows))


def write_experts(path: Path, similarity: Similarity) -> None:
    """Write a row per block, mixture, language and expert: tokens, share of the mixture's; whole or not at all."""
    rows = [
        {
            "block": block,
            "mixture": mixture,
            "expert": expert,
            "language": language,
            "tokens": int(tokens),
            "share": float(tokens / counts[row].sum()),
        }
        for block, mixtures in sorted(similarity.routed.items())
        for mixture, counts in mixtures.items()
        for row, language in enumerate(similarity.languages)
        for expert, tokens in enumerate(counts[row])
    ]
    _write(path, pa.Table.from_pylist(rows))


def _write(path: Path, table: pa.Table) -> None:
    with appearing(path) as unfinished:
        pq.write_table(table, unfinished)
