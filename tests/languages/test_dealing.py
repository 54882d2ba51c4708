"""Amounts dealt out over linears: against every assignment, bounds, ramps."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mbs_ray.languages.dealing import Tried, deal, least_cost, ramp, ramp_of_widths

KEPT = np.array([2.0, 3.0, 4.0])


@st.composite
def small(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, float]:
    """Costs [linears, 3, languages] that may rise again, weights, and what may be kept on average."""
    linears, languages = draw(st.integers(1, 5)), draw(st.integers(1, 3))
    numbers = st.floats(0, 10, allow_subnormal=False)
    cost = np.array(draw(st.lists(numbers, min_size=linears * 3 * languages, max_size=linears * 3 * languages)))
    weights = np.array(draw(st.lists(st.integers(1, 20), min_size=linears, max_size=linears)))
    return cost.reshape(linears, 3, languages), weights, draw(st.floats(2, 4))


def every(cost: np.ndarray, weights: np.ndarray, most: float) -> float:
    """Return the least cost of all assignments, by trying each."""
    best = np.inf
    for chosen in itertools.product(range(3), repeat=len(weights)):
        if (KEPT[list(chosen)] * weights).sum() <= most * weights.sum() + 1e-9:
            best = min(best, sum(cost[at, one] for at, one in enumerate(chosen)))
    return best


@given(small())
def test_no_assignment_of_a_step_less_costs_less_and_none_keeps_more(
    case: tuple[np.ndarray, np.ndarray, float],
) -> None:
    cost, weights, most = case
    chosen = least_cost(cost[:, :, 0], KEPT, weights, most)
    found = cost[np.arange(len(weights)), chosen, 0].sum()
    assert (KEPT[chosen] * weights).sum() <= most * weights.sum() + 1e-6
    assert found >= every(cost[:, :, 0], weights, most + 1e-6) - 1e-9
    # The hull's choice is the best of its own size; what is left is less than the largest step.
    step = weights.max() * 2 / weights.sum()
    if most - step >= 2:
        assert found <= every(cost[:, :, 0], weights, most - step) + 1e-9


@given(small(), st.sampled_from(["mean", "worst"]))
def test_what_is_dealt_out_is_predicted_to_cost_no_more_than_the_same_everywhere(
    case: tuple[np.ndarray, np.ndarray, float], objective: str
) -> None:
    cost, weights, most = case
    tried = Tried(KEPT, KEPT, cost, weights)
    chosen = deal(tried, most, objective)
    value = np.mean if objective == "mean" else np.max
    assert tried.kept_on_average(chosen) <= most + 1e-6
    for at in np.flatnonzero(most >= KEPT):
        assert value(tried.predicted(chosen)) <= value(tried.predicted(np.full(len(weights), at))) + 1e-12


def test_the_worst_language_is_spared_where_the_mean_would_not_spare_it() -> None:
    # Of two linears one may keep more: the second saves less in all, but all of it is the worst language's.
    cost = np.array([[[5.0, 1.0], [0.0, 1.0]], [[0.0, 8.0], [0.0, 4.0]]])
    tried = Tried(np.array([2.0, 3.0]), np.array([2.0, 3.0]), cost, np.array([1, 1]))
    assert deal(tried, 2.5, "mean").tolist() == [1, 0]
    assert deal(tried, 2.5, "worst").tolist() == [0, 1]


def test_amounts_between_trials_cost_what_the_logs_say() -> None:
    tried = Tried(
        np.array([0.4, 0.5, 0.6]), np.array([0.6, 0.5, 0.4]), np.array([[[1.0], [4.0], [64.0]]]), np.array([7])
    )
    refined = tried.refined()
    assert len(refined.amounts) == 21 and refined.amounts[[0, 5, 10, 20]] == pytest.approx([0.4, 0.45, 0.5, 0.6])
    assert refined.kept == pytest.approx(1 - refined.amounts)
    assert refined.cost[0, [0, 5, 10, 15, 20], 0] == pytest.approx([1, 2, 4, 16, 64])


def test_linears_of_a_group_get_one_amount() -> None:
    cost = np.arange(12.0).reshape(3, 2, 2)
    joined = Tried(np.array([2.0, 3.0]), np.array([2.0, 3.0]), cost, np.array([1, 2, 4])).joined([[0, 2], [1]])
    assert joined.weights.tolist() == [5, 2] and (joined.cost[0] == cost[0] + cost[2]).all()


def test_what_cannot_be_kept_is_an_error() -> None:
    with pytest.raises(ValueError, match="even the smallest amounts leave more than 1"):
        least_cost(np.ones((2, 3)), KEPT, np.array([1, 1]), 1.0)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.floats(0.2, 0.8))
def test_a_ramp_grows_from_block_to_block_and_is_exact_on_average(sizes: list[int], mean: float) -> None:
    amounts = ramp(range(len(sizes)), np.array(sizes), mean, 0.05)
    assert (amounts * sizes).sum() / sum(sizes) == pytest.approx(mean)
    steps = np.diff(amounts)
    assert steps == pytest.approx(np.full(len(steps), 0.1 / max(len(steps), 1)))


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.floats(2, 8))
def test_the_first_blocks_get_more_bits_as_far_as_the_average_goes(sizes: list[int], mean: float) -> None:
    bits = ramp_of_widths(range(len(sizes)), np.array(sizes), mean)
    assert (bits * sizes).sum() <= mean * sum(sizes) + 1e-6
    assert (np.diff(bits) <= 0).all() and set(bits) <= {int(mean), int(mean) + 1}
    if (bits == int(mean)).any():  # the next block would have been too much
        more = bits.copy()
        more[(bits == int(mean)).argmax()] += 1
        assert (more * sizes).sum() > mean * sum(sizes) - 1e-6
