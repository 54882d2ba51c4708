"""The grammar of metric names: the names of every earlier version, and none that means two things."""

from itertools import product
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mbs_ray.errors import InputError
from mbs_ray.evaluation.intervals import SegmentSums
from mbs_ray.evaluation.metric_names import INCREASE, PERPLEXITY, SCORED_TOKENS, SUMMARIES, Family, MetricNames
from mbs_ray.evaluation.perplexity import LanguageScore, evaluation_metrics
from mbs_ray.run.spec import BEGINNINGS_OF_METRICS, RunSpec
from mbs_ray.run.sweep_spec import validated

FAMILIES: tuple[Family, ...] = get_args(Family)
ENDS = ("_ci95_low", "_ci95_high")
set_names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,12}", fullmatch=True).filter(
    lambda name: not name.startswith(BEGINNINGS_OF_METRICS)
)
rows = st.sampled_from(["en", "zh-Hans", "sw", *SUMMARIES])


def spec(*sets: str) -> RunSpec:
    evaluation = {name: {"corpus": "text"} for name in sets}
    run = {"model": "m", "corpus": "c", "method": "wanda", "sampling": "equal", "evaluation": evaluation}
    return validated(RunSpec, run)


def scores(nll: float) -> dict[str, LanguageScore]:
    sums = SegmentSums(np.arange(2, dtype=np.int32), np.array([nll, nll + 1]), np.array([3, 4]))
    return {language: LanguageScore(7, 21, 2, 2 * nll + 1, sums) for language in ("en", "sw")}


@pytest.mark.parametrize(("names", "tail"), [(MetricNames(), ""), (MetricNames("udhr"), "_udhr")])
def test_the_metrics_of_a_set_have_the_names_they_always_had(names: MetricNames, tail: str) -> None:
    families = ("ppl", "bpb", "scored_tokens", "scored_bytes", "scored_documents", "ppl_ci95_low", "ppl_ci95_high")
    expected = {f"{family}{tail}/{language}" for family in families for language in ("en", "sw")}
    expected |= {f"ppl_increase{tail}/{row}" for row in ("en", "sw", "geomean", "worst")}
    expected |= {f"ppl_increase_ci95_{end}{tail}/{row}" for end in ("low", "high") for row in ("en", "sw", "geomean")}
    assert set(evaluation_metrics(names, scores(2.0), scores(1.0))) == expected
    grouped = {f"ppl_increase{part}{tail}/low-share" for part in ("", "_ci95_low", "_ci95_high")}
    groups = {"low-share": ("sw",)}
    assert set(evaluation_metrics(names, scores(2.0), scores(1.0), groups=groups)) == expected | grouped
    assert names.perplexity("sw") == f"ppl{tail}/sw" and names.bits_per_byte("sw") == f"bpb{tail}/sw"
    assert names.increase("worst") == f"ppl_increase{tail}/worst"
    assert names.metric(SCORED_TOKENS, "sw") == f"scored_tokens{tail}/sw"
    assert names.interval(INCREASE, "geomean") == (
        f"ppl_increase_ci95_low{tail}/geomean",
        f"ppl_increase_ci95_high{tail}/geomean",
    )


def test_the_first_set_alone_has_no_name_in_its_metrics() -> None:
    assert MetricNames.by_set(["held-out", "all"]) == {"held-out": MetricNames(), "all": MetricNames("all")}
    assert MetricNames.by_set(["all", "held-out"])["all"].perplexity("en") == "ppl/en"


@given(sets=st.lists(set_names, min_size=1, max_size=4, unique=True), languages=st.sets(rows, min_size=1))
def test_from_a_name_its_set_family_end_and_row_are_found_again(sets: list[str], languages: set[str]) -> None:
    by_set = MetricNames.by_set(sets)
    parts: dict[str, tuple[str, ...]] = {}
    for (name, names), family, row in product(by_set.items(), FAMILIES, sorted(languages)):
        own = (names.metric(family, row), *names.interval(family, row))
        for metric, end in zip(own, ("", *ENDS), strict=True):
            assert metric not in parts, f"{metric} means two things"
            parts[metric] = name, family, end, row
    metrics = {metric: float(number) for number, metric in enumerate(parts)}
    for (name, names), family in product(by_set.items(), FAMILIES):
        found = names.rows(family, metrics)
        assert found == {part[3]: metrics[key] for key, part in parts.items() if part[:3] == (name, family, "")}


def test_a_set_whose_name_would_make_the_metrics_of_another_family_is_refused() -> None:
    """What the specs refuse is what the families make of it: those of which another one's is the beginning."""
    heads = {metric.partition("/")[0] for f in FAMILIES for metric in (f, *MetricNames().interval(f, "en"))}
    rests = {long.removeprefix(f"{short}_") for short, long in product(heads, heads) if long.startswith(f"{short}_")}
    assert {rest.partition("_")[0] for rest in rests} == set(BEGINNINGS_OF_METRICS)
    for rest in rests:
        assert MetricNames(rest).metric(PERPLEXITY, "sw").partition("/")[0] in heads
        with pytest.raises(InputError, match="metrics are named like that"):
            spec("held-out", rest)
    assert list(spec("held-out", "tokens", "documents").evaluation) == ["held-out", "tokens", "documents"]
