"""Deals an amount out over the linears of a model: so much on average, where it costs least. Plain arithmetic.

What an amount costs a language in a linear is predicted as in :mod:`mbs_ray.compression.sensitivity`, from a trial with
that amount everywhere. The costs add up, so that the best amounts are those of a knapsack with one choice for each
linear: along the lower convex hull of its costs, by gain per weight (Sinha & Zoltners, Operations Research 27, 1979).
Predictions are of second order, and far from the trials' average they tell too little: hence a width that the caller
keeps small. Where the worst language counts, languages are weighed as in :mod:`mbs_ray.languages.search`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

#: Rounds and step of the multiplicative weights of languages.
_ROUNDS, _STEP = 64, 2.0
#: Amounts between two that were tried.
_BETWEEN = 10
_LEAST_COST = 1e-30


@dataclass(frozen=True)
class Tried:
    """Trials of the same linears with several amounts, ascending.

    ``cost``: float64 [linears, amounts, languages], predicted increases of the nll in nats per token. ``kept``: float64
    [amounts], the part of a weight that an amount leaves (1 − sparsity, or bits). ``weights``: int64 [linears].
    """

    amounts: np.ndarray
    kept: np.ndarray
    cost: np.ndarray
    weights: np.ndarray

    def refined(self) -> "Tried":
        """Return amounts between those tried as well; the log of a cost is interpolated."""
        steps = np.arange((len(self.amounts) - 1) * _BETWEEN + 1) / _BETWEEN
        tried = np.arange(len(self.amounts))
        logs = np.log(np.maximum(self.cost, _LEAST_COST))
        between = np.apply_along_axis(lambda own: np.interp(steps, tried, own), 1, logs)
        amounts, kept = (np.interp(steps, tried, own) for own in (self.amounts, self.kept))
        return Tried(amounts, kept, np.exp(between), self.weights)

    def joined(self, groups: Sequence[Sequence[int]]) -> "Tried":
        """Return groups of linears in the place of linears: all of a group are to get the same amount."""
        cost = np.stack([self.cost[list(group)].sum(0) for group in groups])
        return Tried(self.amounts, self.kept, cost, np.array([self.weights[list(group)].sum() for group in groups]))

    def predicted(self, chosen: np.ndarray) -> np.ndarray:
        """Sum what the chosen amounts, indices [linears], cost each language: float64 [languages]."""
        total: np.ndarray = self.cost[np.arange(len(chosen)), chosen].sum(0)
        return total

    def kept_on_average(self, chosen: np.ndarray) -> float:
        """Compute the part of a weight that the chosen amounts leave, on average over the weights."""
        return float((self.kept[chosen] * self.weights).sum() / self.weights.sum())


def deal(tried: Tried, most: float, objective: str) -> np.ndarray:
    """Choose an amount for each linear that leaves at most ``most`` of a weight on average: indices int64 [linears].

    ``objective``: the ``mean`` of the languages' predicted increases is made least, or the ``worst``. Where the same
    amount in all linears leaves no more and is predicted to cost less than what was found, that is chosen. Raises
    ValueError where even the smallest amounts leave more.
    """
    candidates = [np.full(len(tried.weights), at) for at in np.flatnonzero(tried.kept <= most + 1e-9)]
    multipliers = np.full(tried.cost.shape[2], 1 / tried.cost.shape[2])
    for _ in range(1 if objective == "mean" else _ROUNDS):
        chosen = least_cost(tried.cost @ multipliers, tried.kept, tried.weights, most)
        candidates.append(chosen)
        increase = tried.predicted(chosen)
        multipliers = multipliers * np.exp(_STEP * (increase / max(increase.mean(), _LEAST_COST) - 1))
        multipliers /= multipliers.sum()
    value = np.mean if objective == "mean" else np.max
    return min(candidates, key=lambda one: float(value(tried.predicted(one))))


def least_cost(cost: np.ndarray, kept: np.ndarray, weights: np.ndarray, most: float) -> np.ndarray:
    """Choose the candidate of each linear so that the sum of costs is least, up to one step: int64 [linears].

    ``cost`` [linears, candidates], ``kept`` [candidates] as ``most`` is the average over ``weights`` [linears]. Raises
    ValueError where even the smallest candidates leave more.
    """
    hulls = [_hull(own, kept) for own in cost]
    chosen = np.array([hull[0] for hull in hulls])
    left = most * weights.sum() - (kept[chosen] * weights).sum()
    slack = 1e-9 * weights.sum()
    if left < -slack:
        raise ValueError(f"even the smallest amounts leave more than {most:g}")
    steps = [
        ((cost[at, before] - cost[at, after]) / (weights[at] * (kept[after] - kept[before])), at, before, after)
        for at, hull in enumerate(hulls)
        for before, after in pairwise(hull)
    ]
    # Gains shrink along a hull, so that its steps come in their order; one that does not fit closes its linear.
    for _, at, before, after in sorted(steps, key=lambda step: -step[0]):
        needed = weights[at] * (kept[after] - kept[before])
        if chosen[at] == before and needed <= left + slack:
            chosen[at] = after
            left -= needed
    return chosen


def ramp(blocks: Sequence[int], weights: np.ndarray, mean: float, width: float) -> np.ndarray:
    """Compute amounts that grow evenly from ``mean`` − ``width`` to ``mean`` + ``width``, block by block: [linears].

    ``blocks`` are those of the linears; the average over ``weights`` is ``mean``, for which all are shifted.
    """
    first, last = min(blocks), max(blocks)
    places = (np.array(blocks) - first) / max(last - first, 1) * 2 - (1 if last > first else 0)
    amounts = mean + width * places
    return amounts + mean - (amounts * weights).sum() / weights.sum()


def ramp_of_widths(blocks: Sequence[int], weights: np.ndarray, mean: float) -> np.ndarray:
    """Give the first blocks the whole bits above ``mean`` and the others those below: int64 [linears].

    As many blocks get more as leave at most ``mean`` on average over ``weights``.
    """
    low = int(np.floor(mean))
    bits = np.full(len(blocks), low)
    left = (mean - low) * weights.sum() * (1 + 1e-12)
    for block in sorted(set(blocks)):
        own = np.array(blocks) == block
        if weights[own].sum() > left:
            break
        bits[own] = low + 1
        left -= weights[own].sum()
    return bits


def _hull(cost: np.ndarray, kept: np.ndarray) -> list[int]:
    """List the candidates on the lower convex hull, by what they leave, as long as the cost falls."""
    hull: list[int] = []
    for at in np.argsort(kept, kind="stable"):
        if hull and cost[at] >= cost[hull[-1]]:
            continue
        while len(hull) > 1 and _slope(cost, kept, hull[-2], hull[-1]) >= _slope(cost, kept, hull[-2], at):
            hull.pop()
        hull.append(int(at))
    return hull


def _slope(cost: np.ndarray, kept: np.ndarray, one: int, other: int) -> float:
    return float((cost[other] - cost[one]) / (kept[other] - kept[one]))
