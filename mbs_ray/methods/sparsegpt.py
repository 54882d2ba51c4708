"""SparseGPT: prune with the updates of Optimal Brain Surgeon."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from typing import ClassVar

import torch
from torch import Tensor

from mbs_ray.methods.inputs import check_tensors, required_moment
from mbs_ray.methods.moments import Moment, Statistic
from mbs_ray.methods.obs import (
    InverseFactor,
    check_solver,
    column_blocks,
    inverse_factor,
    solve_columns,
    transposed,
)
from mbs_ray.methods.precision import exact_float32
from mbs_ray.methods.result import Compressed, measured
from mbs_ray.methods.sparsity import Pruning, count_zeros, lowest_of_all, lowest_of_groups


@dataclass(frozen=True, kw_only=True)
class SparseGPT(Pruning):
    """Frantar & Alistarh, SparseGPT, arXiv 2301.00774, section 3, algorithm 1.

    Score w² / [H⁻¹]_jj over the columns that are left, from weights as already updated. Unstructured:
    compared over all rows of a block of `block_size` columns; the blocks' counts are rounded so that the
    linear loses exactly round(sparsity * rows * columns). n:m: compared in every row when its group begins.
    Dead columns have no score to be compared by: they are pruned by magnitude at the same ratio, the live
    ones among themselves (in an n:m group, which has no room for two ratios, they count as average columns).

    damping: fraction of the Hessian's mean diagonal added to it, raised tenfold (up to 1) where it is too
    little for a factorization.
    """

    name: ClassVar[str] = "sparsegpt"
    statistic: ClassVar[Statistic] = Statistic.FULL

    block_size: int = 128
    damping: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        check_solver(self.name, self.block_size, self.damping)

    @exact_float32()
    def compress(self, weight: Tensor, moment: Moment | None, name: str = "linear") -> Compressed:
        """Prune [rows, columns] by a full moment; survivors are updated and rounded to the weight's dtype."""
        rows, columns = check_tensors(weight, moment, name)
        self.check(rows, columns, name)
        moment = required_moment(moment, self.name, self.statistic, name)
        factor = inverse_factor(moment, self.damping, name)
        work = transposed(weight)
        kept = self.kept_of_group
        if kept is None:
            blocks = column_blocks(columns, self.block_size)
            stops, choose = dict(blocks), _choose_in_block(work, factor, self.sparsity)
        else:
            blocks = column_blocks(columns, self.block_size, kept[1])
            stops = {start: start + kept[1] for start in range(0, columns, kept[1])}
            choose = _choose_in_group(work, factor, *kept)
        pruned = torch.zeros_like(work, dtype=torch.bool)

        def final(j: int) -> Tensor:
            if j in stops:
                pruned[j : stops[j]] = choose(j, stops[j])
            return work[j].masked_fill(pruned[j], 0)

        solve_columns(work, factor.upper, blocks, final)
        written = work.t().to(weight.dtype).contiguous()
        return measured(weight, written, moment, name, damping=factor.damping)


Choose = Callable[[int, int], Tensor]
"""(start, stop) -> mask [stop - start, rows] of what to prune there, from the columns as they are then."""


def _choose_in_block(columns: Tensor, factor: InverseFactor, sparsity: float) -> Choose:
    dead, rows = factor.dead, columns.shape[1]
    live_before = [0, *accumulate(int(not is_dead) for is_dead in dead.tolist())]
    dead_columns = len(dead) - live_before[-1]
    # No update ever reaches a dead column, so theirs are chosen at once.
    pruned_dead = torch.zeros_like(columns, dtype=torch.bool)
    pruned_dead[dead] = lowest_of_all(columns[dead].t().abs(), count_zeros(sparsity, rows * dead_columns)).t()

    def zeros_before(column: int) -> int:
        """Zeros in the dead columns and in the live ones before this: rounded sums, so that all add up."""
        return count_zeros(sparsity, rows * (dead_columns + live_before[column]))

    def choose(start: int, stop: int) -> Tensor:
        scores = _scores(columns, factor, start, stop).masked_fill_(dead[start:stop, None], math.inf)
        pruned = lowest_of_all(scores.t(), zeros_before(stop) - zeros_before(start)).t()
        return pruned | pruned_dead[start:stop]

    return choose


def _choose_in_group(columns: Tensor, factor: InverseFactor, keep: int, group: int) -> Choose:
    def choose(start: int, stop: int) -> Tensor:
        return lowest_of_groups(_scores(columns, factor, start, stop).t(), keep, group).t()

    return choose


def _scores(columns: Tensor, factor: InverseFactor, start: int, stop: int) -> Tensor:
    """|w| / U_jj, the root of w² / [H⁻¹]_jj (same order, no overflow)."""
    return columns[start:stop].abs() / factor.upper.diagonal()[start:stop, None]
