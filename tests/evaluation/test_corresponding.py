"""Parallel text: which documents correspond, a plain loop, and how often the interval of the mean holds the truth."""

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mbs_ray.evaluation.comparison import compare_scores
from mbs_ray.evaluation.corresponding import (
    FEWEST_DOCUMENTS,
    DocumentSums,
    bootstrap_together,
    corresponding,
    document_names,
)
from mbs_ray.evaluation.intervals import RESAMPLES, SEED, SegmentSums, bootstrap_means, percentile_interval
from mbs_ray.evaluation.metric_names import MetricNames
from mbs_ray.evaluation.perplexity import (
    LanguageScore,
    bootstrap_differences,
    bootstrap_mean,
    evaluation_metrics,
    language_scores,
    mean_of_languages,
)
from mbs_ray.evaluation.token_scores import SCHEMA
from mbs_ray.text.unit_draw import generator

LANGUAGES = ("ar", "de", "en", "hi", "ja", "sw", "ta", "zh-Hans")
TRUTH = 0.1


def sums(labels: list[str]) -> DocumentSums:
    return DocumentSums(tuple(labels), np.zeros(len(labels)), np.ones(len(labels), np.int64))


def labelled(language: str, form: str, count: int, first: int = 0) -> DocumentSums:
    return sums([form.format(language=language, number=number) for number in range(first, first + count)])


@pytest.mark.parametrize(
    ("form", "parallel", "correspond"),
    [
        ("{language}.jsonl#{number}", None, True),
        ("{language}/part-0.parquet#{number}", None, True),
        ("{language}:validation[0]#{number}", None, True),
        ("{language}.txt@{number}", None, False),  # bytes, which tell nothing
        ("{language}.txt@{number}", True, True),
        ("{language}.jsonl#{number}", False, False),
    ],
)
def test_documents_of_one_number_correspond_unless_the_set_says_otherwise(
    form: str, parallel: bool | None, correspond: bool
) -> None:
    found = corresponding({code: labelled(code, form, 20) for code in LANGUAGES}, parallel)
    assert (found is not None) == correspond
    if found is not None:
        assert len({tuple(names) for names in found.values()}) == 1 and len(set(found["en"])) == 20


def test_few_documents_and_few_that_are_shared_do_not_correspond() -> None:
    form = "{language}.jsonl#{number}"
    few = {code: labelled(code, form, FEWEST_DOCUMENTS - 1) for code in LANGUAGES}
    assert corresponding(few) is None and corresponding(few, True) is not None
    apart = {code: labelled(code, form, 30, 29 * at) for at, code in enumerate(LANGUAGES)}  # each shares one, twice
    assert corresponding(apart) is None
    assert corresponding({"en": labelled("en", form, 30)}) is None


def test_files_of_another_kind_and_places_in_bytes_are_the_same_documents() -> None:
    assert document_names("en", ["en.jsonl.gz#0", "en.jsonl.gz#12"], False) == ["#0", "#12"]
    assert document_names("sw", ["sw.parquet#0", "sw.parquet#12"], False) == ["#0", "#12"]
    assert document_names("sw", ["sw.txt@1000", "sw.txt@0", "sw.txt@90"], True) == ["#2", "#0", "#1"]
    assert document_names("hi", ["hindi:test[3]#1"], False) == ["test[3]#1"]


def test_every_resample_is_what_a_plain_loop_makes() -> None:
    random = np.random.default_rng(5)
    drawn_sums, names = {}, {}
    for code, missing in (("en", 3), ("sw", 7)):
        names[code] = [f"#{number}" for number in range(15) if number != missing]
        drawn_sums[code] = DocumentSums(tuple(names[code]), random.normal(size=14), random.integers(1, 90, 14))
    found = bootstrap_together(drawn_sums, names)
    order = sorted({*names["en"], *names["sw"]})
    drawn = generator(SEED, "documents", "bootstrap").integers(15, size=(RESAMPLES, 15))
    expected = []
    for row in drawn.tolist():
        means = []
        for code, one in drawn_sums.items():
            own = [names[code].index(order[at]) for at in row if order[at] in names[code]]
            means.append(math.fsum(one.nll[at] for at in own) / sum(int(one.tokens[at]) for at in own))
        expected.append(sum(means) / 2)
    assert found == pytest.approx(expected, rel=1e-9)


def test_a_resample_without_a_document_of_a_language_is_left_out() -> None:
    names = {"en": [f"#{number}" for number in range(12)], "sw": ["#0"]}
    pair = {code: DocumentSums(tuple(own), np.full(len(own), 2.0), np.full(len(own), 4)) for code, own in names.items()}
    found = bootstrap_together(pair, names)
    assert 0 < len(found) < RESAMPLES and (found == 0.5).all()


def scored(random: np.random.Generator, correlation: float, documents: int) -> dict[str, LanguageScore]:
    """Differences of nll whose mean per token is TRUTH; those of one document correlate across languages."""
    common = random.normal(size=documents)
    scores = {}
    for language in LANGUAGES:
        own = math.sqrt(correlation) * common + math.sqrt(1 - correlation) * random.normal(size=documents)
        tokens = random.integers(30, 90, documents)
        nll = tokens * (TRUTH + 0.05 * own)
        labels = tuple(f"{language}.jsonl#{number:04d}" for number in range(documents))
        segments = SegmentSums(np.arange(documents, dtype=np.int32), nll, tokens)
        by_document = DocumentSums(labels, nll, tokens)
        scores[language] = LanguageScore(int(tokens.sum()), 1, documents, float(nll.sum()), segments, by_document)
    return scores


def nothing(scores: dict[str, LanguageScore]) -> dict[str, LanguageScore]:
    """What the scores are differences to: a model with no nll at all."""
    zero = {}
    for language, one in scores.items():
        none = np.zeros(one.documents)
        segments = SegmentSums(one.segments.segment, none, one.segments.tokens)
        zero[language] = LanguageScore(
            one.tokens, 1, one.documents, 0.0, segments, DocumentSums(one.by_document.labels, none, one.segments.tokens)
        )
    return zero


def coverage(correlation: float, simulations: int, parallel: bool | None, documents: int = 60) -> int:
    random = np.random.default_rng(6)
    covered = 0
    for _ in range(simulations):
        scores = scored(random, correlation, documents)
        interval = percentile_interval(bootstrap_mean(scores, nothing(scores), parallel))
        covered += interval.low <= TRUTH <= interval.high
    return covered


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.8])
def test_about_95_of_100_intervals_of_the_mean_hold_the_truth_however_languages_correlate(correlation: float) -> None:
    # Binomial(100, 0.94) is below 86 once in a thousand times.
    assert coverage(correlation, 100, None) >= 86


def test_drawing_languages_apart_holds_it_far_less_often_where_they_correlate() -> None:
    assert coverage(0.5, 60, False) < 50
    assert coverage(0.8, 60, False) < 45


def test_without_correspondence_the_mean_is_that_of_languages_drawn_apart() -> None:
    scores = scored(np.random.default_rng(7), 0.5, 30)
    none = nothing(scores)
    apart = mean_of_languages(bootstrap_differences(scores, none))
    assert (bootstrap_mean(scores, none, False) == apart).all()
    without = {code: LanguageScore(one.tokens, 1, one.documents, one.nll, one.segments) for code, one in scores.items()}
    assert (bootstrap_mean(without, none) == apart).all()
    assert not np.array_equal(bootstrap_mean(scores, none), apart)


def write(path: Path, loss: float, form: str) -> Path:
    """Token scores of twelve parallel documents of six tokens each, two to a segment, in two languages."""
    columns: dict[str, list] = {name: [] for name in SCHEMA.names}
    for at, language in enumerate(("en", "sw")):
        for number in range(12):
            hard = np.random.default_rng(number).gamma(2.0)
            columns["nll"] += [2.0 + loss * hard] * 6
            columns["language"] += [language] * 6
            columns["document"] += [form.format(language=language, number=number * (7 + at))] * 6
            columns["bytes"] += [3] * 6
            columns["segment"] += [6 * at + number // 2] * 6
    pq.write_table(pa.table(columns).cast(SCHEMA), path)
    return path


def test_the_metrics_and_the_comparison_of_files_take_the_same_documents(tmp_path: Path) -> None:
    """In text of which each document is equally hard in both languages the mean is as uncertain as one language."""
    form = "{language}.txt@{number}"
    a, b = write(tmp_path / "a", 0.0, form), write(tmp_path / "b", 0.3, form)
    together = compare_scores("x", a, b, parallel=True)
    apart = compare_scores("x", a, b)
    width = {
        key: one["geomean"].interval.high - one["geomean"].interval.low
        for key, one in {"together": together, "apart": apart}.items()
    }
    assert width["together"] > 1.2 * width["apart"]
    metrics = evaluation_metrics(MetricNames(), language_scores(b), language_scores(a), True)
    assert metrics["ppl_increase_ci95_low/geomean"] == pytest.approx(math.exp(together["geomean"].interval.low))
    sums_of_b = language_scores(b)["sw"].by_document
    assert sums_of_b.tokens.tolist() == [6] * 12 and sums_of_b.nll.sum() == pytest.approx(language_scores(b)["sw"].nll)
    one = bootstrap_means(sums_of_b.nll, sums_of_b.tokens, "sw")
    own = percentile_interval(one)
    assert own is not None and width["together"] == pytest.approx(own.high - own.low, rel=0.15)
