"""The search for a mixture of languages: the next to try, and the best. Plain arithmetic; knows no model and no Ray.

A mixture is the weights of a sum of second moments, one for each language. What it does to each language is predicted
(:mod:`mbs_ray.compression.sensitivity`) once the linears are solved with it: a trial. Where the largest of several
increases is to be minimised, the best weights are the multipliers of the minimax problem, which grow where the
increase stays above the others and shrink where it stays below: multiplicative weights (Arora, Hazan & Kale, Theory of
Computing 8, 2012).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

#: How much a weight grows with the log of the increase it stands for. A weight that doubles takes about a tenth from
#: its language's increase, so that a step of ten would close a gap at once; this does not overshoot.
_STEP = 6.0
#: No language gets less than this part of an equal share: what a starved one loses is more than second order tells.
_LEAST = 0.25


@dataclass(frozen=True)
class Trial:
    """What a mixture did: ``weights`` add up to 1, ``increase`` is predicted, nats per token, by language."""

    weights: dict[str, float]
    increase: dict[str, float]


@dataclass(frozen=True)
class Search:
    """An objective (see :data:`mbs_ray.languages.samplings.OBJECTIVES`), and the mixtures that are tried first.

    ``starts`` are equal weights, where they are known (for ``regret`` always) the proportional ones, and others that
    promise well. ``trials`` is how many are tried at most.
    """

    objective: str
    trials: int
    starts: Sequence[Mapping[str, float]]

    def next(self, tried: Sequence[Trial]) -> dict[str, float] | None:
        """Return the mixture to try after these; None where the search is over."""
        if len(tried) < len(self.starts):
            whole = sum(self.starts[len(tried)].values())
            return {code: one / whole for code, one in self.starts[len(tried)].items()}
        if self.objective == "mean" or len(tried) >= self.trials:
            return None
        last = tried[self.best(tried)] if len(tried) == len(self.starts) else tried[-1]
        losses = self._losses(tried, last)
        middle = sum(losses.values()) / len(losses)
        return held({code: one * math.exp(_STEP * (losses[code] - middle)) for code, one in last.weights.items()})

    def value(self, tried: Sequence[Trial], one: Trial) -> float:
        """Compute the objective: the mean or largest increase in nats per token, or the largest regret, a log ratio."""
        if self.objective == "mean":
            return sum(one.increase.values()) / len(one.increase)
        worst = max(self._losses(tried, one).values())
        return worst if self.objective == "regret" else math.exp(worst)

    def best(self, tried: Sequence[Trial]) -> int:
        """Return the index of the best trial; the earliest of several."""
        return min(range(len(tried)), key=lambda index: self.value(tried, tried[index]))

    def _losses(self, tried: Sequence[Trial], one: Trial) -> dict[str, float]:
        """Compute the log of each increase; for ``regret`` less that under the better of equal and proportional."""
        if self.objective != "regret":
            return {code: _log(increase) for code, increase in one.increase.items()}
        equal, proportional = tried[0].increase, tried[1].increase
        return {
            code: _log(increase) - _log(min(equal[code], proportional[code])) for code, increase in one.increase.items()
        }


def sensitive_weights(
    sensitivity: Mapping[int, Mapping[str, Mapping[str, float]]], languages: Sequence[str]
) -> dict[str, float]:
    """Weigh each language by its sensitivity: its share in that of all, mean over the linears.

    For one linear these are exactly the weights that minimise the sum of the predicted increases, which is the error in
    the metric of Σ s S; over all linears they are a compromise.
    """
    weights = dict.fromkeys(languages, 0.0)
    for linears in sensitivity.values():
        for own in linears.values():
            whole = sum(own.values())
            for code in languages:
                weights[code] += own.get(code, 0.0) / whole if whole else 0.0
    return weights


def held(weights: Mapping[str, float]) -> dict[str, float]:
    """Scale weights to add up to 1, none below a quarter of an equal share; the others pay for it in proportion."""
    least = _LEAST / len(weights)
    free = set(weights)
    while True:
        whole = sum(weights[code] for code in free)
        left = 1 - least * (len(weights) - len(free))
        low = {code for code in free if weights[code] / whole * left < least}
        if not low:
            return {code: weights[code] / whole * left if code in free else least for code in weights}
        free -= low


def _log(increase: float) -> float:
    # A language that loses nothing at all (a method that changed nothing) is as far below the others as can be told.
    return math.log(max(increase, 1e-12))
