"""Wanda: prune by magnitude times the norm of the input."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mbs_ray.methods.inputs import check_tensors, required_moment
from mbs_ray.methods.moments import Moment, Statistic
from mbs_ray.methods.precision import exact_float32
from mbs_ray.methods.result import Compressed, measured
from mbs_ray.methods.sparsity import Pruning, count_zeros, lowest, lowest_of_groups


@dataclass(frozen=True, kw_only=True)
class Wanda(Pruning):
    """Sun et al., A Simple and Effective Pruning Approach for LLMs, arXiv 2306.11695, section 3.

    Score |w_ij| * ||x_j||, compared within a row: exactly round(sparsity * columns) of every row are pruned,
    or m - n of every n:m group. Survivors are untouched. Dead columns have no score to be compared by: they
    are pruned by magnitude at the same ratio, the live ones among themselves (in an n:m group, which has no
    room for two ratios, they count as columns of average norm).
    """

    name: ClassVar[str] = "wanda"
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
            total, of_dead = (count_zeros(self.sparsity, n) for n in (columns, int(dead.sum())))
            scores = (sizes * diagonal.sqrt()).masked_fill_(dead, math.inf)
            pruned = lowest(scores, total - of_dead) | lowest(sizes.masked_fill_(~dead, math.inf), of_dead)
        return measured(weight, weight.masked_fill(pruned, 0), moment, name)
