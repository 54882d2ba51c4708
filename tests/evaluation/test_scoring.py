"""nll per token equals the plain model's cross-entropy, whatever the chunks."""

import math
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM

from mbs_ray.evaluation import scoring
from mbs_ray.evaluation.intervals import SegmentSums
from mbs_ray.evaluation.metric_names import INCREASE, PERPLEXITY, MetricNames
from mbs_ray.evaluation.perplexity import (
    LanguageScore,
    evaluation_metrics,
    geometric_mean,
    language_scores,
    perplexity_increases,
    stored_interval,
)
from mbs_ray.evaluation.scoring import score
from mbs_ray.model import head
from mbs_ray.model.checkpoint import Checkpoint
from mbs_ray.model.decoder import Decoder


def finished(decoder: Decoder, ids: torch.Tensor) -> torch.Tensor:
    hidden = decoder.embed(ids)
    for index in range(decoder.blocks):
        hidden = decoder.run_block(decoder.load_block(index, decoder.read_block(index)), index, hidden)
    return decoder.finish(hidden)


@pytest.mark.parametrize("layout", ["bloom", "llama"])
@pytest.mark.parametrize(("vocabulary", "logit_bytes"), [(32768, 2**28), (37, 2**28), (64, 4 * 64 * 3)])
def test_nll_is_the_cross_entropy_of_the_plain_models_logits(
    layout: str, vocabulary: int, logit_bytes: int, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "VOCABULARY_CHUNK", vocabulary)
    monkeypatch.setattr(scoring, "LOGIT_BYTES", logit_bytes)
    folder = request.getfixturevalue(layout)
    ids = torch.randint(0, 400, (5, 12), generator=torch.Generator().manual_seed(3))
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids[[1, 4], -1] = plain(ids).logits[[1, 4], -2].argmax(-1)
    decoder = Decoder(Checkpoint(folder), torch.float32)
    with torch.inference_mode():
        logits = plain(ids).logits.double()
        parts = score(decoder, [(finished(decoder, ids[rows]), ids[rows]) for rows in (slice(0, 3), slice(3, 5))])
    expected = torch.logsumexp(logits[:, :-1], -1) - logits[:, :-1].gather(2, ids[:, 1:, None])[..., 0]
    assert [tuple(part.nll.shape) for part in parts] == [(3, 11), (2, 11)]
    torch.testing.assert_close(torch.cat([part.nll for part in parts]).double(), expected, atol=2e-5, rtol=1e-5)
    is_argmax = logits[:, :-1].argmax(-1) == ids[:, 1:]
    assert is_argmax.sum() >= 2 and torch.equal(torch.cat([part.is_argmax for part in parts]), is_argmax)


@pytest.mark.parametrize("vocabulary", [32768, 64])
def test_of_equally_likely_tokens_the_first_is_the_likeliest_as_torch_has_it(
    bloom: Path, vocabulary: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every third row of the head is the same, and some logits are twice the largest: ties within and across chunks."""
    monkeypatch.setattr(head, "VOCABULARY_CHUNK", vocabulary)
    decoder = Decoder(Checkpoint(bloom), torch.float32)
    rows = torch.randn(10, 32, generator=torch.Generator().manual_seed(1))[torch.arange(400) % 10]
    monkeypatch.setattr(decoder, "head_rows", lambda start, stop: (rows[start:stop], None))
    hidden = torch.randn(2, 12, 32, generator=torch.Generator().manual_seed(2))
    likeliest = (hidden @ rows.T).argmax(-1)
    assert (likeliest < 10).all()
    for shift, expected in ((0, True), (10, False), (120, False)):
        ids = torch.cat([torch.zeros(2, 1, dtype=torch.int64), likeliest[:, :-1] + shift], 1)
        (scored,) = score(decoder, [(hidden, ids)])
        assert bool(scored.is_argmax.all()) is expected and bool(scored.is_argmax.any()) is expected
    zeros = torch.zeros(2, 12, 32)
    ids = torch.arange(24).reshape(2, 12) % 12
    (scored,) = score(decoder, [(zeros, ids)])
    assert not scored.is_argmax.any()
    (scored,) = score(decoder, [(zeros, ids * 0)])
    assert scored.is_argmax.all()
    (scored,) = score(decoder, [(zeros / 0, ids * 0)])
    assert not scored.is_argmax.any()


def test_one_microbatch_is_held_at_a_time_and_the_order_is_kept(bloom: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "VOCABULARY_CHUNK", 100)
    decoder = Decoder(Checkpoint(bloom), torch.float32)
    generator = torch.Generator().manual_seed(3)
    ids = [torch.randint(0, 400, (rows, 12), generator=generator) for rows in (3, 1, 2)]
    hidden = [finished(decoder, one) for one in ids]
    alive: list[weakref.ref[torch.Tensor]] = []

    class Stored:
        def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
            for states, tokens in zip(hidden, ids, strict=True):
                read = states.clone()
                alive.append(weakref.ref(read))
                yield read, tokens
                assert sum(reference() is not None for reference in alive) <= 2
                del read

    with torch.inference_mode():
        parts = score(decoder, Stored())
        alone = [score(decoder, [pair])[0] for pair in zip(hidden, ids, strict=True)]
    assert len(alive) > len(ids)
    assert all(torch.equal(part.nll, one.nll) for part, one in zip(parts, alone, strict=True))


def test_aggregates_follow_from_the_rows_of_tokens(tmp_path: Path) -> None:
    import pyarrow as pa

    from mbs_ray.evaluation.token_scores import SCHEMA

    generator = np.random.default_rng(0)
    nll = generator.gamma(2.0, 1.5, 1000).astype(np.float32)
    language = np.array(["sw", "en"])[generator.integers(0, 2, 1000)]
    size = generator.integers(0, 6, 1000).astype(np.uint16)
    columns = {"nll": nll, "language": language, "document": language, "bytes": size, "segment": np.arange(1000)}
    table = pa.table({name: pa.array(column) for name, column in columns.items()}).cast(SCHEMA)
    pq.write_table(table, tmp_path / "scores.parquet")
    scores = language_scores(tmp_path / "scores.parquet")
    assert list(scores) == ["en", "sw"]
    for code, one in scores.items():
        own = language == code
        total = nll[own].astype(np.float64).sum()
        assert one.tokens == own.sum() and one.bytes == size[own].sum() and one.documents == 1
        assert math.isclose(one.perplexity, math.exp(total / own.sum()), rel_tol=1e-12)
        assert math.isclose(one.bits_per_byte, total / math.log(2) / size[own].sum(), rel_tol=1e-12)


def segment_scores(nll: list[float], tokens: list[int]) -> LanguageScore:
    """A language of as many segments; three bytes a token."""
    sums = SegmentSums(np.arange(len(nll), dtype=np.int32), np.array(nll), np.array(tokens))
    return LanguageScore(sum(tokens), 3 * sum(tokens), 1, sum(nll), sums)


def test_increases_are_ratios_on_the_same_tokens_and_refuse_others() -> None:
    dense = {"en": segment_scores([12.0, 8.0], [6, 4]), "sw": segment_scores([15.0], [5])}
    compressed = {"en": segment_scores([18.0, 12.0], [6, 4]), "sw": segment_scores([25.0], [5])}
    increases = perplexity_increases(compressed, dense)
    assert increases == {"en": pytest.approx(math.e), "sw": pytest.approx(math.e**2)}
    assert geometric_mean(increases) == pytest.approx(math.e**1.5)
    metrics = evaluation_metrics(MetricNames(), compressed, dense)
    assert metrics["ppl_increase/worst"] == pytest.approx(math.e**2)
    assert metrics["ppl_increase/geomean"] == pytest.approx(math.e**1.5)
    assert metrics["ppl/en"] == pytest.approx(math.exp(3))
    assert (metrics["scored_tokens/en"], metrics["scored_bytes/en"], metrics["scored_documents/sw"]) == (10, 30, 1)
    udhr = evaluation_metrics(MetricNames("udhr"), compressed, dense)
    assert udhr["ppl_increase_udhr/sw"] == pytest.approx(math.e**2)
    for other in (segment_scores([25.0], [6]), segment_scores([12.0, 13.0], [2, 3])):
        with pytest.raises(ValueError, match=r"sw: .* same tokens"):
            perplexity_increases({"en": compressed["en"], "sw": other}, dense)


def test_intervals_are_metrics_beside_what_they_belong_to_and_absent_for_a_single_segment() -> None:
    # Every segment of English loses one nat per token; Swahili has one segment.
    dense = {"en": segment_scores([12.0, 8.0], [6, 4]), "sw": segment_scores([15.0], [5])}
    compressed = {"en": segment_scores([18.0, 12.0], [6, 4]), "sw": segment_scores([25.0], [5])}
    metrics = evaluation_metrics(MetricNames("udhr"), compressed, dense)
    ends = {key: value for key, value in metrics.items() if "ci95" in key}
    assert ends == {
        "ppl_ci95_low_udhr/en": pytest.approx(math.exp(3)),
        "ppl_ci95_high_udhr/en": pytest.approx(math.exp(3)),
        "ppl_increase_ci95_low_udhr/en": pytest.approx(math.e),
        "ppl_increase_ci95_high_udhr/en": pytest.approx(math.e),
    }
    udhr = MetricNames("udhr")
    assert stored_interval(metrics, udhr, INCREASE, "en") == pytest.approx((math.e, math.e))
    assert stored_interval(metrics, udhr, PERPLEXITY, "en") == pytest.approx((math.exp(3), math.exp(3)))
    assert stored_interval(metrics, udhr, PERPLEXITY, "sw") is None
    assert stored_interval(metrics, MetricNames(), PERPLEXITY, "en") is None
    english = evaluation_metrics(MetricNames(), {"en": compressed["en"]}, {"en": dense["en"]})
    assert english["ppl_increase_ci95_high/geomean"] == pytest.approx(math.e)
