"""Wanda: prune by magnitude times the norm of the input."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mbs_ray.methods.moments import Moment, Statistic
from mbs_ray.methods.precision import exact_float32
from mbs_ray.methods.result import Compressed, measured
from mbs_ray.methods.sparsity import Pruning, count_zeros, lowest, lowest_of_all, lowest_of_groups
from mbs_ray.methods.tensor_checks import check_tensors, required_moment


@dataclass(frozen=True, kw_only=True)
class Wanda(Pruning):
    """Pruning by the score |w_ij| * ||x_j||; survivors are not changed.

    Sun et al., A Simple and Effective Pruning Approach for LLMs, arXiv 2306.11695, section 3. scope: "row" prunes
    exactly round(sparsity * columns) of every row; "linear" exactly round(sparsity * rows * columns), compared over
    the whole linear; "share" as many, compared by the share of its row's scores that a weight and all below it hold
    (the limit of the variant in the paper's appendix, which searches for one threshold of that share). n:m: m - n of
    every group.

    Dead columns have no score to be compared by: they are pruned by magnitude at the same ratio, the live ones
    among themselves (in an n:m group, which has no room for two ratios, they count as columns of average norm).
    """

    name: ClassVar[str] = "wanda"
    scopes: ClassVar[tuple[str, ...]] = ("row", "linear", "share")
    statistic: ClassVar[Statistic] = Statistic.DIAGONAL

    @exact_float32()
    def compress(self, weight: Tensor, moment: Moment | None, name: str = "linear") -> Compressed:
        """Prune [rows, columns] by a diagonal (or full) moment."""
        rows, columns = check_tensors(weight, moment, name)
        self.check(rows, columns, name)
        moment = required_moment(moment, self.name, self.statistic, name)
        diagonal, dead = moment.diagonal(), moment.dead()
        sizes = weight.abs().float()
        kept = self.kept_of_group
        if kept is not None:
            norms = torch.where(dead, moment.live_mean(), diagonal).sqrt()
            pruned = lowest_of_groups(sizes * norms, *kept)
        else:
            # Live columns are compared by score and dead ones by magnitude, each for their own part of the count.
            weights = columns if self.scope == "row" else rows * columns
            total, of_dead = (count_zeros(self.sparsity, n) for n in (weights, weights // columns * int(dead.sum())))
            pruned = self._chosen(sizes * diagonal.sqrt(), dead, total - of_dead)
            if of_dead:
                pruned |= self._chosen(sizes, ~dead, of_dead)
        return measured(weight, torch.where(pruned, 0, weight), moment, name)

    def _chosen(self, scores: Tensor, excluded: Tensor, count: int) -> Tensor:
        """Return a mask of `count` weights of the linear, or of every row, none of them in an excluded column."""
        if self.scope == "share":
            scores = _shares(scores.masked_fill(excluded, 0))
        choose = lowest if self.scope == "row" else lowest_of_all
        return choose(scores.masked_fill(excluded, math.inf) if excluded.any() else scores, count)


def _shares(scores: Tensor) -> Tensor:
    """Compute the share of its row's sum that a score and all lower ones hold, [rows, columns] float64."""
    ascending, order = torch.sort(scores.double(), dim=1, stable=True)
    sums = ascending.sum(1, keepdim=True)
    shares = ascending.cumsum(1).div_(sums.masked_fill(sums == 0, 1))
    return torch.empty_like(shares).scatter_(1, order, shares)
