"""Allocations add up exactly, and the paper's numbers come out."""

from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mbs_ray.errors import InputError
from mbs_ray.languages.distribution import DISTRIBUTION_FILE, ROOTS, Distribution
from mbs_ray.languages.facts import LANGUAGES, PAPER_LANGUAGES, table_order
from mbs_ray.languages.sampling_registry import (
    SAMPLINGS,
    build_sampling,
    counts_tokens,
    distribution_for,
    sampling_spec,
)
from mbs_ray.languages.samplings import Adaptive, Counts, Equal, Monolingual, Proportional, Sampling, Temperature
from tests.support.examples import examples

CODES = list(LANGUAGES)
ALL = [Monolingual("sw"), Equal(), Proportional(), Temperature(0.3), Counts({"sw": 2, "en": 3}), Adaptive("worst", 5)]
AMOUNTS = st.dictionaries(
    st.sampled_from(CODES), st.floats(min_value=1e-3, max_value=1e15, allow_nan=False), min_size=1, max_size=25
)


def by_the_rule(amounts: dict[str, float], segments: int) -> dict[str, int]:
    """The rule of the issue, word by word, in exact arithmetic."""
    order = table_order(amounts)
    total = sum(Fraction(amount) for amount in amounts.values())
    quota = {code: segments * Fraction(amounts[code]) / total for code in order}
    given = {code: max(1, int(quota[code])) for code in order}
    while sum(given.values()) > segments:
        largest = max(given.values())
        given[next(code for code in order if given[code] == largest)] -= 1
    while sum(given.values()) < segments:
        best = max(quota[code] - given[code] for code in order)
        given[next(code for code in order if quota[code] - given[code] == best)] += 1
    return given


def test_256_segments_over_the_papers_20_languages_are_the_papers() -> None:
    allocation = Proportional().allocate(ROOTS, PAPER_LANGUAGES, 256)
    assert list(allocation.values()) == [87, 47, 37, 31, 14, 13, 7, 4, 3, 3] + [1] * 10
    assert allocation == {code: LANGUAGES[code].paper_segments for code in PAPER_LANGUAGES}


@pytest.mark.parametrize("segments", [20, 21, 24, 44, 255, 1024, 100_000])
def test_the_rule_is_completed_where_the_papers_sum_is_off(segments: int) -> None:
    allocation = Proportional().allocate(ROOTS, PAPER_LANGUAGES, segments)
    assert sum(allocation.values()) == segments
    assert allocation == by_the_rule(ROOTS.amounts_of(PAPER_LANGUAGES), segments)


@examples(100)
@given(AMOUNTS, st.integers(0, 300))
def test_proportional_is_the_rule_for_any_distribution(amounts: dict[str, float], extra: int) -> None:
    segments = len(amounts) + extra
    distribution = Distribution("any", "bytes", amounts)
    allocation = Proportional().allocate(distribution, amounts, segments)
    assert allocation == by_the_rule(amounts, segments)
    assert Temperature(1).allocate(distribution, amounts, segments) == allocation


@examples(100)
@given(AMOUNTS, st.integers(0, 5000), st.floats(0, 3))
def test_every_sampling_adds_up_exactly_with_at_least_one_each(
    amounts: dict[str, float], extra: int, alpha: float
) -> None:
    segments = len(amounts) + extra
    for sampling in (Equal(), Proportional(), Temperature(alpha)):
        allocation = sampling.allocate(Distribution("any", "bytes", amounts), amounts, segments)
        assert sum(allocation.values()) == segments
        assert min(allocation.values()) >= 1
        assert tuple(allocation) == table_order(amounts)


@examples(50)
@given(st.lists(st.sampled_from(CODES), unique=True, min_size=1), st.integers(0, 500))
def test_equal_gives_the_rest_in_table_order_and_alpha_zero_does_the_same(codes: list[str], extra: int) -> None:
    segments = len(codes) + extra
    allocation = Equal().allocate(None, codes, segments)
    share, rest = divmod(segments, len(codes))
    assert list(allocation.values()) == [share + (place < rest) for place in range(len(codes))]
    assert Temperature(0).allocate(ROOTS, codes, segments) == allocation


def test_a_lower_temperature_gives_small_languages_more() -> None:
    of_swahili = [Temperature(alpha).allocate(ROOTS, PAPER_LANGUAGES, 1024)["sw"] for alpha in (1, 0.5, 0.3, 0)]
    assert of_swahili == sorted(of_swahili) and of_swahili[0] < of_swahili[-1]


def test_an_extreme_distribution_still_adds_up() -> None:
    amounts = {"en": 1e300, "sw": 1e-300, "yo": 1.0}
    for sampling in (Proportional(), Temperature(100), Temperature(1)):
        assert sampling.allocate(Distribution("any", "x", amounts), amounts, 7) == {"en": 5, "sw": 1, "yo": 1}


def test_monolingual_gives_all_to_its_language_whatever_is_asked_for() -> None:
    assert Monolingual().allocate(ROOTS, ["sw", "yo"], 5) == {"en": 5}


def test_counts_come_in_table_order() -> None:
    assert list(Counts({"sw": 2, "en": 3}).allocate(ROOTS, ["en", "sw"], 5).items()) == [("en", 3), ("sw", 2)]


@examples(100)
@given(AMOUNTS, st.floats(0, 3))
def test_weights_are_the_shares_that_an_allocation_comes_ever_nearer_to(
    amounts: dict[str, float], alpha: float
) -> None:
    distribution, count = Distribution("any", "bytes", amounts), 10**6
    for sampling in (Equal(), Proportional(), Temperature(alpha)):
        weights = sampling.weights(distribution, amounts)
        assert sum(weights.values()) == 1 and min(weights.values()) > 0
        assert tuple(weights) == table_order(amounts)
        allocation = sampling.allocate(distribution, amounts, count)
        # Floors of one segment, and what mends the sum, are all that tells them apart.
        assert all(abs(allocation[code] - count * weights[code]) <= len(amounts) + 1 for code in amounts)
    assert Proportional().weights(distribution, amounts) == Temperature(1).weights(distribution, amounts)


def test_weights_of_one_language_of_counts_and_of_a_share_that_vanishes() -> None:
    assert Monolingual("sw").weights(ROOTS, ["en"]) == {"sw": 1}
    assert Counts({"sw": 1, "en": 3}).weights(ROOTS, ["en", "sw"]) == {"en": Fraction(3, 4), "sw": Fraction(1, 4)}
    amounts = {"en": 1e300, "sw": 1e-300, "yo": 1.0}
    assert Temperature(100).weights(Distribution("any", "x", amounts), amounts) == {"en": 1}
    with pytest.raises(InputError, match="no language to weigh"):
        Equal().weights(None, [])


@pytest.mark.parametrize(
    ("sampling", "languages", "segments", "message"),
    [
        (Equal(), ["en", "fr", "sw"], 2, "2 segments are fewer than the 3 languages"),
        (Proportional(), PAPER_LANGUAGES, 19, "19 segments are fewer than the 20 languages"),
        (Monolingual(), ["en"], 0, "0 segments"),
        (Counts({"en": 3}), ["en"], 4, "add up to 3 segments, not 4"),
        (Proportional(), ["en", "xx"], 4, "'xx' is not in the distribution"),
        (Equal(), [], 4, "no language"),
    ],
)
def test_an_allocation_that_cannot_be_is_one_line(
    sampling: Sampling, languages: list[str], segments: int, message: str
) -> None:
    with pytest.raises(InputError, match=message) as error:
        sampling.allocate(ROOTS, languages, segments)
    assert "\n" not in str(error.value)


def test_tokens_are_bytes_over_bytes_per_token() -> None:
    """The scripts of twice the bytes per token have half the tokens; what is in tokens already stays."""
    known = Distribution("any", "bytes", {"en": 800.0, "hi": 800.0, "ta": 400.0})
    rates = {"en": 4.0, "hi": 8.0, "ta": 8.0}
    in_tokens = known.in_tokens(["en", "hi", "ta"], lambda codes: {code: rates[code] for code in codes})
    assert (in_tokens.source, in_tokens.unit) == ("any, in tokens", "tokens")
    assert Proportional("tokens").allocate(in_tokens, ["en", "hi", "ta"], 70) == {"en": 40, "hi": 20, "ta": 10}
    assert counts_tokens(Proportional("tokens"), known) and not counts_tokens(Proportional("tokens"), in_tokens)
    assert not counts_tokens(Proportional(), known) and not counts_tokens(Equal(), known)
    with pytest.raises(InputError, match="language 'sw' is not in the distribution"):
        known.in_tokens(["sw"], lambda _: pytest.fail("counted"))
    with pytest.raises(InputError, match="needs a distribution in bytes or tokens, and any has 'documents'"):
        Distribution("any", "documents", {"en": 1.0}).in_tokens(["en"], lambda _: pytest.fail("counted"))


def test_the_unit_is_in_label_and_spec_only_where_it_is_not_the_papers() -> None:
    assert (Proportional().label, Proportional("tokens").label) == ("proportional", "proportional-tokens")
    assert sampling_spec(Proportional()) == {"name": "proportional"}
    assert build_sampling(sampling_spec(Proportional("tokens"))) == Proportional("tokens")


def test_proportional_without_a_distribution_says_so() -> None:
    with pytest.raises(InputError, match="proportional needs the model's language distribution"):
        Proportional().allocate(None, ["en"], 4)


@pytest.mark.parametrize("sampling", ALL, ids=lambda sampling: sampling.name)
def test_a_sampling_is_rebuilt_from_its_spec(sampling: Sampling) -> None:
    assert build_sampling(sampling_spec(sampling)) == sampling


def test_every_sampling_has_a_name_and_a_label_for_run_names() -> None:
    assert list(SAMPLINGS) == [sampling.name for sampling in ALL]
    labels = [sampling.label for sampling in ALL]
    assert labels == [
        "monolingual-sw",
        "equal",
        "proportional",
        "temperature-0.3",
        "counts-en3-sw2",
        "adaptive-worst-5",
    ]
    long = Counts(dict.fromkeys(CODES, 2)).label
    assert Adaptive().label == "adaptive-regret"
    assert len(long) < 20 and long != Counts(dict.fromkeys(CODES, 3)).label


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("balanced", "unknown sampling 'balanced': there are monolingual, equal"),
        ({"alpha": 0.3}, "unknown sampling None"),
        ({"name": "temperature", "alhpa": 0.3}, "unknown field 'alhpa'; its fields: alpha"),
        ("temperature", "field 'alpha' is missing"),
        ({"name": "temperature", "alpha": -1}, "alpha must be from 0"),
        ({"name": "temperature", "alpha": float("nan")}, "alpha must be from 0"),
        ({"name": "temperature", "alpha": "0.3"}, "alpha must be from 0"),
        ({"name": "counts", "counts": {"en": 0}}, "counts.en must be a positive integer"),
        ({"name": "counts", "counts": {"en": 1.5}}, "counts.en must be a positive integer"),
        ({"name": "counts", "counts": {}}, "counts must map"),
        ({"name": "monolingual", "language": 3}, "sampling monolingual: language 3: a code is a text"),
        ({"name": "monolingual", "language": "../x"}, "sampling monolingual: language '../x': no code of a language"),
        ({"name": "monolingual", "language": False}, "language false: YAML reads no .* in quotes: 'no'"),
        ({"name": "counts", "counts": {False: 4, "en": 4}}, "sampling counts: language false: YAML reads no"),
        ({"name": "counts", "counts": {"sr@latin": 4}}, "name it 'sr-latin'"),
        ({"name": "proportional", "unit": "words"}, "unknown unit 'words': there are bytes, tokens"),
        ({"name": "adaptive", "objective": "best"}, "unknown objective 'best': there are mean, worst, regret"),
        ({"name": "adaptive", "trials": 2}, "trials must be a whole number of at least 3, not 2"),
        ({"name": "adaptive", "sensitivity_segments": 0}, "sensitivity_segments must be a whole number of at least 1"),
        ({"name": "adaptive", "sensitivity_segments": True}, "sensitivity_segments must be a whole number"),
        (3, "expected a name or a mapping"),
    ],
)
def test_a_spec_that_makes_no_sense_is_one_line(spec: object, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        build_sampling(spec)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


def test_an_adaptive_sampling_begins_with_equal_weights_and_gives_no_segments() -> None:
    assert Adaptive().weights(ROOTS, ["sw", "en"]) == {"en": Fraction(1, 2), "sw": Fraction(1, 2)}
    with pytest.raises(InputError, match="give the run statistics: dense, with weights: shares"):
        Adaptive().allocate(ROOTS, ["en", "sw"], 4)


def test_only_regret_needs_to_know_what_is_proportional(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert distribution_for(Adaptive("worst"), str(tmp_path), None) is None
    with pytest.raises(InputError, match=r"sampling adaptive: .* other objectives of adaptive need none"):
        distribution_for(Adaptive("regret"), str(tmp_path), None)


def test_a_distribution_that_is_there_but_broken_is_refused_whatever_the_sampling(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert distribution_for(Equal(), str(tmp_path), None) is None
    (tmp_path / DISTRIBUTION_FILE).write_text('{"source": "mine", "unit": "tokens", "languages": {"en": -1}}')
    with pytest.raises(InputError, match=r"languages\.en"):
        distribution_for(Equal(), str(tmp_path), None)


VALUES = {
    Monolingual: [{"language": code} for code in ("en", "sw", "de", "no")],
    Temperature: [{"alpha": alpha} for alpha in (0, 0.3, 0.5, 1, 2.5)],
    Counts: [{"counts": counts} for counts in ({"en": 3}, {"en": 4}, {"sw": 3}, {"en": 3, "sw": 1})],
    Adaptive: [
        {"objective": objective, "trials": trials} for objective in ("mean", "worst", "regret") for trials in (3, 8, 9)
    ],
}


def test_samplings_that_differ_have_labels_that_differ() -> None:
    drawn = [sampling(**fields) for sampling in SAMPLINGS.values() for fields in VALUES.get(sampling, [{}])]
    assert len({one.label for one in drawn}) == len(drawn)
