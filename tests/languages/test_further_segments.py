"""Further segments for starved experts: against every way of dealing them out, and what never happens."""

import itertools
from fractions import Fraction

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mbs_ray.languages.further_segments import Routed, further_segments


@st.composite
def routings(draw: st.DrawFn) -> Routed:
    languages, experts = draw(st.integers(1, 3)), draw(st.integers(1, 5))
    counts = st.lists(st.integers(0, 12), min_size=experts, max_size=experts)
    tokens = draw(st.lists(counts, min_size=languages, max_size=languages))
    segments = draw(st.lists(st.integers(1, 4), min_size=languages, max_size=languages))
    least = draw(st.lists(st.integers(1, 30), min_size=experts, max_size=experts))
    return Routed(np.array(tokens), tuple(segments), np.array(least))


def missing(routed: Routed, further: tuple[int, ...] | list[int]) -> list[Fraction]:
    """Exact tokens that each expert is expected to lack with these further segments."""
    received = [sum(map(int, column)) for column in routed.tokens.T]
    return [
        max(
            Fraction(0),
            int(routed.least[expert])
            - received[expert]
            - sum(
                Fraction(int(routed.tokens[at, expert]) * count, routed.segments[at])
                for at, count in enumerate(further)
            ),
        )
        for expert in range(len(received))
    ]


@given(routings())
def test_a_single_segment_is_of_the_first_language_that_adds_the_most(routed: Routed) -> None:
    languages = len(routed.segments)
    each = [[int(at == one) for at in range(languages)] for one in range(languages)]
    left = [sum(missing(routed, one)) for one in each]
    best = min(left)
    expected = each[left.index(best)] if best < sum(missing(routed, [0] * languages)) else [0] * languages
    assert further_segments(routed, 1) == expected


@given(routings(), st.integers(0, 4))
def test_greedy_makes_up_for_at_least_the_guaranteed_part_of_what_the_best_way_does(
    routed: Routed, at_most: int
) -> None:
    """What is added is monotone with diminishing returns, for which greedy is within 1 − (1 − 1/n)ⁿ of the best."""
    languages = len(routed.segments)
    before = sum(missing(routed, [0] * languages))
    ways = [one for one in itertools.product(range(at_most + 1), repeat=languages) if sum(one) <= at_most]
    best = max(before - sum(missing(routed, one)) for one in ways)
    found = before - sum(missing(routed, further_segments(routed, at_most)))
    assert found >= (1 - (1 - Fraction(1, max(at_most, 1))) ** at_most) * best


@given(routings(), st.integers(0, 40))
def test_the_bound_is_kept_and_every_segment_helps_a_starved_expert(routed: Routed, at_most: int) -> None:
    found = further_segments(routed, at_most)
    assert min(found) >= 0 and sum(found) <= at_most
    taken = [0] * len(found)
    # The way there is the same whatever the bound, so that each bound adds one segment, which adds tokens that lacked.
    for bound in range(1, sum(found) + 1):
        following = further_segments(routed, bound)
        steps = [after - before for before, after in zip(taken, following, strict=True)]
        assert sorted(steps) == [0] * (len(found) - 1) + [1]
        assert sum(missing(routed, following)) < sum(missing(routed, taken))
        taken = following
    assert taken == found


@given(routings(), st.integers(0, 40))
def test_it_stops_only_where_nothing_is_starved_nothing_helps_or_the_bound_is_reached(
    routed: Routed, at_most: int
) -> None:
    found = further_segments(routed, at_most)
    left = missing(routed, found)
    if sum(found) < at_most:
        reached = routed.tokens.sum(0) > 0
        assert all(not lacking or not there for lacking, there in zip(left, reached, strict=True))
    expected = routed.expected(found)
    np.testing.assert_allclose(np.maximum(routed.least - expected, 0), [float(one) for one in left], atol=1e-9)


def test_thirds_of_a_token_add_up_to_whole_ones() -> None:
    """Ten tokens of three segments: three more bring the ten that are missing, in floats they might not."""
    routed = Routed(np.array([[10]]), (3,), np.array([20]))
    assert further_segments(routed, 100) == [3]


def test_what_is_not_starved_or_reached_by_nobody_asks_for_nothing() -> None:
    routed = Routed(np.array([[40, 0], [9, 0]]), (4, 4), np.array([49, 5]))
    assert routed.starved.tolist() == [False, True]
    assert further_segments(routed, 8) == [0, 0]


def test_of_languages_that_add_alike_the_first_is_taken() -> None:
    routed = Routed(np.array([[4, 0], [0, 4]]), (1, 1), np.array([12, 12]))
    assert [further_segments(routed, bound) for bound in (1, 2, 3, 9)] == [[1, 0], [2, 0], [2, 1], [2, 2]]
