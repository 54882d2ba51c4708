"""Perplexity and bits per byte per language, derived from the rows of scored tokens."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mbs_ray.evaluation.corresponding import DocumentSums, bootstrap_together, corresponding
from mbs_ray.evaluation.intervals import Interval, SegmentSums, bootstrap_means, percentile_interval
from mbs_ray.evaluation.metric_names import (
    GEOMEAN,
    INCREASE,
    PERPLEXITY,
    SCORED_BYTES,
    SCORED_DOCUMENTS,
    SCORED_TOKENS,
    UNKNOWN_SHARE,
    WORST,
    Family,
    MetricNames,
)
from mbs_ray.evaluation.text_warnings import UNKNOWN_KEY
from mbs_ray.languages.facts import table_order

#: Rows of token scores that are summed at once, and by what besides the language.
_ROWS_AT_ONCE = 2**18
_KINDS = ("segment", "document")
_NO_GROUPS: Mapping[str, Iterable[str]] = MappingProxyType({})


def exponential(nats: float) -> float:
    """exp, infinite where it is more than a float holds."""
    try:
        return math.exp(nats)
    except OverflowError:
        return math.inf


@dataclass(frozen=True)
class LanguageScore:
    """Sums over the scored tokens of one language: ``nll`` in nats, ``bytes`` of their text in NFC.

    ``unknown``: share of the text's bytes that the tokenizer does not know; the numbers flatter by it.
    """

    tokens: int
    bytes: int
    documents: int
    nll: float
    segments: SegmentSums = field(compare=False, repr=False)
    by_document: DocumentSums | None = field(default=None, compare=False, repr=False)
    unknown: float = 0.0

    @property
    def perplexity(self) -> float:
        """exp of the mean nll of a token; comparable between runs of a model, not between languages.

        Infinite above 709 nats, where no float holds it: a model that is destroyed.
        """
        return exponential(self.nll / self.tokens)

    @property
    def bits_per_byte(self) -> float:
        """Σ nll / ln 2 ÷ bytes; comparable between languages and tokenizers."""
        return self.nll / math.log(2) / self.bytes


def language_scores(path: Path) -> dict[str, LanguageScore]:
    """Sum a file of token scores by language, in table order; memory grows with its segments and documents alone."""
    with pq.ParquetFile(path) as file:
        unknown = json.loads((file.schema_arrow.metadata or {}).get(UNKNOWN_KEY, b"{}"))
        batches = file.iter_batches(_ROWS_AT_ONCE, columns=["nll", "language", "bytes", "document", "segment"])
        parts = [(_sums(rows, "segment"), _sums(rows, "document")) for rows in map(_as_table, batches)]
    by_segment, by_document = (_together(kind, own) for kind, own in zip(_KINDS, zip(*parts, strict=True), strict=True))
    by_segment, by_document = by_segment.sort_by("segment"), by_document.sort_by("document")
    scores = {}
    for language in table_order(by_document["language"].unique().to_pylist()):
        segments, documents = (one.filter(pc.equal(one["language"], language)) for one in (by_segment, by_document))
        scores[language] = LanguageScore(
            tokens=pc.sum(documents["tokens"]).as_py(),
            bytes=pc.sum(documents["bytes"]).as_py(),
            documents=len(documents),
            nll=math.fsum(segments["nll"].to_pylist()),
            segments=SegmentSums(*(segments[name].to_numpy() for name in ("segment", "nll", "tokens"))),
            by_document=DocumentSums(
                tuple(documents["document"].to_pylist()), documents["nll"].to_numpy(), documents["tokens"].to_numpy()
            ),
            unknown=unknown.get(language, 0.0),
        )
    return scores


def _as_table(batch: pa.RecordBatch) -> pa.Table:
    return pa.Table.from_batches([batch])


def _sums(rows: pa.Table, kind: str) -> pa.Table:
    """Sum some rows by language and ``kind``; sums of float32 and uint32 (once uint16) are made in 64 bits."""
    sums = rows.group_by(["language", kind]).aggregate([("nll", "sum"), ("nll", "count"), ("bytes", "sum")])
    keys = [sums[name] for name in ("language", kind)]
    # The dictionaries of two batches differ.
    texts = [pc.cast(key, pa.string()) if pa.types.is_dictionary(key.type) else key for key in keys]
    values = [sums[name] for name in ("nll_sum", "nll_count", "bytes_sum")]
    return pa.table(dict(zip(("language", kind, "nll", "tokens", "bytes"), (*texts, *values), strict=True)))


def _together(kind: str, parts: Sequence[pa.Table]) -> pa.Table:
    """Add up sums of parts of a file: a segment or document may lie in several."""
    names = ("nll", "tokens", "bytes")
    sums = pa.concat_tables(parts).group_by(["language", kind]).aggregate([(name, "sum") for name in names])
    return sums.select(["language", kind, *(f"{name}_sum" for name in names)]).rename_columns(
        ["language", kind, *names]
    )


def perplexity_interval(language: str, score: LanguageScore) -> Interval | None:
    """Bootstrap the confidence interval of the perplexity; None where there is only one segment."""
    sums = score.segments
    return _exponential(percentile_interval(bootstrap_means(sums.nll, sums.tokens, language)))


def perplexity_increases(
    compressed: Mapping[str, LanguageScore], dense: Mapping[str, LanguageScore]
) -> dict[str, float]:
    """Perplexity over that of the dense model on the same tokens, per language: 1.0 is no loss.

    Raises ValueError where the two were not scored on the same tokens.
    """
    for language, score in dense.items():
        other = compressed.get(language)
        if other is None or not _same_tokens(score, other):
            raise ValueError(f"{language}: the two evaluations did not score the same tokens")
    return {language: _ratio(compressed[language], dense[language]) for language in dense}


def _ratio(one: LanguageScore, other: LanguageScore) -> float:
    """Of perplexities; of infinite ones by their logarithms."""
    if math.isfinite(one.perplexity) and math.isfinite(other.perplexity):
        return one.perplexity / other.perplexity
    return exponential(one.nll / one.tokens - other.nll / other.tokens)


def _same_tokens(one: LanguageScore, other: LanguageScore) -> bool:
    """Compare the numbers of tokens and bytes, and the tokens of each segment; not the text itself."""
    return (
        (one.tokens, one.bytes) == (other.tokens, other.bytes)
        and np.array_equal(one.segments.segment, other.segments.segment)
        and np.array_equal(one.segments.tokens, other.segments.tokens)
    )


def bootstrap_differences(
    scores: Mapping[str, LanguageScore], others: Mapping[str, LanguageScore]
) -> dict[str, npt.NDArray[np.float64]]:
    """Bootstrap the mean over tokens of nll(scores) − nll(others), float64 [RESAMPLES] per language of the others.

    Both must have been scored on the same segments: each resample takes the same segments for both.
    """
    means = {}
    for language, other in others.items():
        one = scores[language].segments
        means[language] = bootstrap_means(one.nll - other.segments.nll, one.tokens, language)
    return means


def mean_of_languages(estimates: Mapping[str, npt.NDArray[np.float64]]) -> npt.NDArray[np.float64]:
    """Average over languages, each resampled by itself; of differences of nll, the logarithm of a geometric mean."""
    return np.mean(list(estimates.values()), axis=0)


def bootstrap_mean(
    scores: Mapping[str, LanguageScore], others: Mapping[str, LanguageScore], parallel: bool | None = None
) -> npt.NDArray[np.float64]:
    """Bootstrapped mean over languages of the mean over tokens of nll(scores) − nll(others), float64.

    Where documents correspond (:func:`~mbs_ray.evaluation.corresponding.corresponding`) the same are drawn of all
    languages, else each language's segments for themselves.
    """
    sums = {
        language: one.by_document.less(other.by_document)
        for language, other in others.items()
        if (one := scores[language]).by_document is not None and other.by_document is not None
    }
    names = corresponding(sums, parallel) if len(sums) == len(others) else None
    if names is not None:
        return bootstrap_together(sums, names)
    return mean_of_languages(bootstrap_differences(scores, others))


def geometric_mean(values: Mapping[str, float]) -> float:
    logarithms = [math.log(value) if value else -math.inf for value in values.values()]
    return exponential(sum(logarithms) / len(values) if math.inf in logarithms else math.fsum(logarithms) / len(values))


def evaluation_metrics(
    names: MetricNames,
    scores: Mapping[str, LanguageScore],
    dense: Mapping[str, LanguageScore] | None,
    parallel: bool | None = None,
    groups: Mapping[str, Iterable[str]] = _NO_GROUPS,
) -> dict[str, float]:
    """Gather the metrics of one evaluation set under their MLflow names.

    Perplexities, increases and the geometric means of these, of all languages and of each of ``groups``, come with the
    ends of their 95 % intervals where there is more than one segment; the worst language has none. ``parallel`` is what
    the set says of its documents. The share of the bytes that the tokenizer does not know is there for languages that
    have any.
    """
    metrics = {names.perplexity(language): score.perplexity for language, score in scores.items()}
    metrics |= {names.bits_per_byte(language): score.bits_per_byte for language, score in scores.items()}
    for language, score in scores.items():
        metrics[names.metric(SCORED_TOKENS, language)] = float(score.tokens)
        metrics[names.metric(SCORED_BYTES, language)] = float(score.bytes)
        metrics[names.metric(SCORED_DOCUMENTS, language)] = float(score.documents)
        if score.unknown:
            metrics[names.metric(UNKNOWN_SHARE, language)] = score.unknown
        metrics |= _interval_metrics(names.interval(PERPLEXITY, language), perplexity_interval(language, score))
    if dense is not None:
        increases = perplexity_increases(scores, dense)
        metrics |= {names.increase(language): value for language, value in increases.items()}
        metrics[names.increase(WORST)] = max(increases.values(), key=lambda one: (math.isnan(one), one))
        estimates = bootstrap_differences(scores, dense)
        for row, languages in {GEOMEAN: dense.keys(), **groups}.items():
            metrics[names.increase(row)] = geometric_mean({code: increases[code] for code in languages})
            estimates[row] = bootstrap_mean(scores, {code: dense[code] for code in languages}, parallel)
        for row, means in estimates.items():
            metrics |= _interval_metrics(names.interval(INCREASE, row), _exponential(percentile_interval(means)))
    return metrics


def _interval_metrics(ends: tuple[str, str], interval: Interval | None) -> dict[str, float]:
    return {} if interval is None else dict(zip(ends, interval, strict=True))


def stored_interval(metrics: Mapping[str, float], names: MetricNames, family: Family, row: str) -> Interval | None:
    """Find the interval of a metric among the metrics of a run; None where it has none."""
    low, high = (metrics.get(end) for end in names.interval(family, row))
    return None if low is None or high is None else Interval(low, high)


def _exponential(interval: Interval | None) -> Interval | None:
    return None if interval is None else Interval(exponential(interval.low), exponential(interval.high))
