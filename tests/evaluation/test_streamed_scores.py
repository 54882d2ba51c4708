"""Token scores are written and summed part by part: the same numbers, and no more memory for more tokens."""

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from mbs_ray.evaluation import perplexity, token_scores
from mbs_ray.evaluation.comparison import compare_scores
from mbs_ray.evaluation.perplexity import language_scores
from mbs_ray.evaluation.token_scores import SCHEMA, write_token_scores
from tests.support.engine import draw

LENGTH = 16


@pytest.mark.parametrize("is_argmax", [False, True])
def test_parts_of_a_file_make_the_file(
    bloom: Path, corpus: Path, tmp_path: Path, is_argmax: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    segments = draw(corpus, bloom, tmp_path, 7, length=LENGTH)
    torch.manual_seed(0)
    nll = torch.rand(len(segments), LENGTH - 1) * 9
    kept = nll > 5 if is_argmax else None
    write_token_scores(tmp_path / "whole.parquet", segments, nll, kept)
    whole = language_scores(tmp_path / "whole.parquet")
    monkeypatch.setattr(token_scores, "ROW_GROUP_TOKENS", 3 * LENGTH)
    monkeypatch.setattr(perplexity, "_ROWS_AT_ONCE", 20)
    write_token_scores(tmp_path / "parts.parquet", segments, nll, kept)
    with pq.ParquetFile(tmp_path / "parts.parquet") as file:
        assert file.num_row_groups == -(-len(segments) // 3) > 5
    one, other = (pq.read_table(tmp_path / f"{name}.parquet").to_pylist() for name in ("whole", "parts"))
    assert one == other
    parts = language_scores(tmp_path / "parts.parquet")
    assert list(parts) == list(whole)
    for language, score in whole.items():
        own = [row for row in one if row["language"] == language]
        assert (score.tokens, score.documents) == (len(own), len({row["document"] for row in own}))
        assert score.bytes == sum(row["bytes"] for row in own)
        assert score.nll == pytest.approx(math.fsum(row["nll"] for row in own), rel=1e-12)
        part = parts[language]
        assert (part.tokens, part.bytes, part.documents) == (score.tokens, score.bytes, score.documents)
        assert part.nll == pytest.approx(score.nll, rel=1e-12)
        assert part.segments.segment.tolist() == score.segments.segment.tolist()
        assert part.segments.nll == pytest.approx(score.segments.nll, rel=1e-12)
        assert part.by_document is not None and score.by_document is not None
        assert part.by_document.labels == score.by_document.labels
        assert part.by_document.nll == pytest.approx(score.by_document.nll, rel=1e-12)
        assert part.by_document.tokens.tolist() == score.by_document.tokens.tolist()
    compared = compare_scores("the set", tmp_path / "whole.parquet", tmp_path / "parts.parquet")
    assert all(one.nll == pytest.approx(0, abs=1e-12) for one in compared.values())


def synthetic(path: Path, tokens: int) -> Path:
    """A file of so many tokens, in segments of 500 and documents of 1,000, of four languages."""
    with pq.ParquetWriter(path, SCHEMA) as writer:
        for start in range(0, tokens, 2**18):
            at = np.arange(start, min(start + 2**18, tokens))
            texts = {"language": (at // 10_000) % 4, "document": at // 1_000}
            columns = {name: pa.array([f"d{one}" for one in own]).dictionary_encode() for name, own in texts.items()}
            numbers = {"nll": at % 7, "bytes": at % 5, "segment": at // 500}
            columns |= {name: pa.array(one).cast(SCHEMA.field(name).type) for name, one in numbers.items()}
            writer.write_table(pa.table({name: columns[name] for name in SCHEMA.names}, schema=SCHEMA))
    return path


def test_memory_of_the_sums_does_not_grow_with_the_tokens(tmp_path: Path) -> None:
    own = pa.default_memory_pool()
    pools = []
    for tokens in (2**19, 2**22):
        file = synthetic(tmp_path / f"{tokens}.parquet", tokens)
        pools.append(pa.proxy_memory_pool(own))  # it counts; and outlives what was allocated through it
        pa.set_memory_pool(pools[-1])
        try:
            assert sum(one.tokens for one in language_scores(file).values()) == tokens
        finally:
            pa.set_memory_pool(own)
    # Eight times the tokens; a file that is read whole takes eight times the memory.
    assert pools[1].max_memory() < 2 * pools[0].max_memory()
