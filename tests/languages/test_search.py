"""The search for a mixture, on increases that are a formula of the weights: where the best one is known."""

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mbs_ray.languages.search import Search, Trial, held, sensitive_weights

CODES = ("en", "fr", "sw", "yo")
#: What a language loses with an equal share, and how steeply less with more of it: about what solvers show.
HARDNESS = {"en": 0.07, "fr": 0.08, "sw": 0.10, "yo": 0.11}
POWER = 0.15


def increase(weights: dict[str, float]) -> dict[str, float]:
    return {code: HARDNESS[code] * (len(CODES) * weights[code]) ** -POWER for code in CODES}


def conducted(search: Search, of: Callable[[dict[str, float]], dict[str, float]] = increase) -> list[Trial]:
    tried: list[Trial] = []
    while (weights := search.next(tried)) is not None:
        assert sum(weights.values()) == pytest.approx(1)
        tried.append(Trial(weights, of(weights)))
    return tried


EQUAL = dict.fromkeys(CODES, 1.0)
PROPORTIONAL = {"en": 0.6, "fr": 0.3, "sw": 0.07, "yo": 0.03}


def test_the_worst_increase_comes_to_where_no_language_can_be_helped_but_at_the_worst_ones_cost() -> None:
    search = Search("worst", 60, [EQUAL, PROPORTIONAL])
    tried = conducted(search)
    assert len(tried) == 60
    # hardness × (n w)^-p the same for all, so w ~ hardness^(1/p), except that English stays at a quarter of its share.
    best = tried[search.best(tried)]
    free = {code: HARDNESS[code] ** (1 / POWER) for code in CODES[1:]}
    by_hand = {code: one / sum(free.values()) * (1 - 0.25 / 4) for code, one in free.items()} | {"en": 0.25 / 4}
    losses = increase(by_hand)
    assert losses["fr"] == pytest.approx(losses["sw"]) == pytest.approx(losses["yo"]) and losses["en"] < losses["fr"]
    assert best.weights == pytest.approx(by_hand, rel=0.02)
    assert search.value(tried, best) == pytest.approx(max(increase(by_hand).values()), rel=2e-3)


def test_eight_trials_come_most_of_the_way() -> None:
    long, short = Search("worst", 60, [EQUAL]), Search("worst", 8, [EQUAL])
    before, after = conducted(short), conducted(long)
    first, reached = short.value(before, before[0]), short.value(before, before[short.best(before)])
    possible = long.value(after, after[long.best(after)])
    assert first - reached > 0.8 * (first - possible)


def test_regret_is_the_same_for_every_language_that_is_not_held_and_below_that_of_either_fixed_sampling() -> None:
    middle = {code: math.sqrt(one) for code, one in PROPORTIONAL.items()}
    search = Search("regret", 60, [EQUAL, PROPORTIONAL, middle])
    tried = conducted(search)
    best = tried[search.best(tried)]
    # English and French are best off under proportional, the others under equal sampling.
    reference = {code: min(increase({**EQUAL, code: 0.25})[code], tried[1].increase[code]) for code in CODES}
    regrets = [math.log(best.increase[code] / reference[code]) for code in CODES]
    assert max(regrets) == pytest.approx(search.value(tried, best))
    assert max(regrets) - min(regrets) < 0.002
    assert 0 < max(regrets) < 0.5 * min(search.value(tried, tried[0]), search.value(tried, tried[1]))
    # By hand: w_l = c × (weight under the better one), and the weights add up to 1.
    wanted = {code: max(0.25, PROPORTIONAL[code]) for code in CODES}
    assert best.weights == pytest.approx({code: one / sum(wanted.values()) for code, one in wanted.items()}, rel=0.02)


def test_the_mean_is_a_choice_among_what_was_tried() -> None:
    sensitive = {"en": 1.0, "fr": 2.0, "sw": 2.5, "yo": 3.0}
    search = Search("mean", 8, [EQUAL, PROPORTIONAL, sensitive])
    tried = conducted(search)
    assert [trial.weights["yo"] for trial in tried] == [0.25, 0.03, pytest.approx(3 / 8.5)]
    means = [sum(trial.increase.values()) / 4 for trial in tried]
    assert [search.value(tried, trial) for trial in tried] == pytest.approx(means)
    assert search.best(tried) == means.index(min(means))
    assert search.best([tried[0], tried[0]]) == 0


def test_for_one_linear_the_sensitive_weights_minimise_the_sum_of_increases() -> None:
    """Σ s_l (w - v_l)² for scalars: the error of a weight w that stands for v_l in each language."""
    sensitive = sensitive_weights({0: {"a": {"en": 3.0, "sw": 1.0}}}, ["en", "sw"])
    share = sensitive["en"] / sum(sensitive.values())
    assert share == pytest.approx(0.75)
    middle = 0.75 * 5.0 + 0.25 * 9.0
    errors = {one: 3.0 * (one - 5.0) ** 2 + (one - 9.0) ** 2 for one in (middle - 0.01, middle, middle + 0.01)}
    assert min(errors, key=errors.__getitem__) == middle
    # Over linears a mean of shares: a linear with large gradients has no more say than one with small ones.
    two = sensitive_weights({0: {"a": {"en": 3.0, "sw": 1.0}}, 1: {"a": {"en": 1e-6, "sw": 3e-6}}}, ["en", "sw"])
    assert two["en"] == pytest.approx(two["sw"])


@given(st.dictionaries(st.text(min_size=1, max_size=2), st.floats(1e-9, 1e9), min_size=1, max_size=12))
def test_held_weights_add_up_keep_their_order_and_leave_none_below_a_quarter_of_its_share(
    weights: dict[str, float],
) -> None:
    kept = held(weights)
    assert sum(kept.values()) == pytest.approx(1)
    assert min(kept.values()) >= 0.25 / len(weights) * (1 - 1e-9)
    for one in weights:
        for other in weights:
            if weights[one] <= weights[other]:
                assert kept[one] <= kept[other] * (1 + 1e-9)


def test_weights_that_need_no_holding_are_only_scaled() -> None:
    assert held({"en": 2.0, "sw": 6.0}) == {"en": 0.25, "sw": 0.75}


def test_a_method_that_changes_nothing_is_no_division_by_zero() -> None:
    search = Search("regret", 5, [EQUAL, PROPORTIONAL])
    tried = conducted(search, lambda weights: dict.fromkeys(weights, 0.0))
    assert len(tried) == 5 and search.value(tried, tried[0]) == 0
