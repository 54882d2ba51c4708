"""Perplexity and bits per byte per language, derived from the rows of scored tokens."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from mbs_ray.languages import table_order


@dataclass(frozen=True)
class LanguageScore:
    """Sums over the scored tokens of one language: ``nll`` in nats, ``bytes`` of their text."""

    tokens: int
    bytes: int
    documents: int
    nll: float

    @property
    def perplexity(self) -> float:
        """exp of the mean nll of a token; comparable between runs of a model, not between languages."""
        return math.exp(self.nll / self.tokens)

    @property
    def bits_per_byte(self) -> float:
        """Σ nll / ln 2 ÷ bytes; comparable between languages and tokenizers."""
        return self.nll / math.log(2) / self.bytes


def language_scores(path: Path) -> dict[str, LanguageScore]:
    """Scores of a file of token scores, in table order of the languages."""
    table = pq.read_table(path, columns=["nll", "language", "bytes", "document"])
    # Sums of float32 and uint16 columns are made in float64 and uint64.
    sums = table.group_by("language").aggregate(
        [("nll", "sum"), ("nll", "count"), ("bytes", "sum"), ("document", "count_distinct")]
    )
    rows = {row["language"]: row for row in sums.to_pylist()}
    return {
        language: LanguageScore(
            tokens=rows[language]["nll_count"],
            bytes=rows[language]["bytes_sum"],
            documents=rows[language]["document_count_distinct"],
            nll=rows[language]["nll_sum"],
        )
        for language in table_order(rows)
    }


def perplexity_increases(
    compressed: Mapping[str, LanguageScore], dense: Mapping[str, LanguageScore]
) -> dict[str, float]:
    """Perplexity over that of the dense model on the same tokens, per language: 1.0 is no loss.

    Raises ValueError where the two were not scored on the same tokens.
    """
    for language, score in dense.items():
        other = compressed.get(language)
        if other is None or (other.tokens, other.bytes) != (score.tokens, score.bytes):
            raise ValueError(f"{language}: the two evaluations did not score the same tokens")
    return {language: compressed[language].perplexity / dense[language].perplexity for language in dense}


def geometric_mean(values: Mapping[str, float]) -> float:
    return math.exp(math.fsum(math.log(value) for value in values.values()) / len(values))


def evaluation_metrics(
    set_name: str | None,
    scores: Mapping[str, LanguageScore],
    dense: Mapping[str, LanguageScore] | None,
) -> dict[str, float]:
    """Metrics of one evaluation set under their MLflow names.

    ``set_name`` is None for a run's first set (``ppl/sw``); others have it in the prefix (``ppl_udhr/sw``).
    """
    tail = "" if set_name is None else f"_{set_name}"
    metrics = {f"ppl{tail}/{language}": score.perplexity for language, score in scores.items()}
    metrics |= {f"bpb{tail}/{language}": score.bits_per_byte for language, score in scores.items()}
    if dense is not None:
        increases = perplexity_increases(scores, dense)
        metrics |= {f"ppl_increase{tail}/{language}": value for language, value in increases.items()}
        metrics[f"ppl_increase{tail}/geomean"] = geometric_mean(increases)
        metrics[f"ppl_increase{tail}/worst"] = max(increases.values())
    return metrics
