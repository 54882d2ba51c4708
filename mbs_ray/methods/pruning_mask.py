"""The mask of the OBS loop, chosen unit by unit from weights as already updated."""

import math
from fractions import Fraction

import torch
from torch import Tensor

from mbs_ray.methods.columns import Columns
from mbs_ray.methods.sparsity import Pruning, count_zeros, lowest, lowest_of_all, lowest_of_few


class PruningMask:
    """Mask of one linear, chosen while its columns are solved.

    Score w² / [H⁻¹]_jj over the columns that are left (Frantar & Alistarh, SparseGPT, arXiv 2301.00774,
    section 3.3). Unstructured: chosen per block of columns, over all its rows or within each; the blocks'
    counts are rounded so that the linear loses exactly round(sparsity * rows * columns), or every row exactly
    round(sparsity * columns). n:m: chosen in every row when its group begins. Dead columns have no score to
    be compared by: they are pruned by magnitude at the same ratio, the live ones among themselves (in an n:m
    group, which has no room for two ratios, they count as average columns).
    """

    def __init__(self, method: Pruning, block_size: int, columns: Columns, keep_zeros: bool) -> None:
        """Prepare a mask of columns as solve_columns changes them; keep_zeros: zeros stay so."""
        self._columns, self._group, self._scope = columns, method.kept_of_group, method.scope
        self._dead, self._roots = columns.factor.dead, columns.factor.pivots.sqrt()[:, None]
        self._kept = columns.work == 0 if keep_zeros else None
        self.unit = self._group[1] if self._group else block_size
        self.pruned = torch.zeros_like(columns.work, dtype=torch.bool)
        """[columns, rows]; what is not chosen yet is False."""
        if self._group is None:
            self._quota = self._quotas(method.sparsity)
            self._prune_dead(method.sparsity)

    def of_columns(self, start: int, stop: int) -> Tensor:
        """Return what to prune of columns that lie in one unit, [columns, rows] bool; to be asked for in order."""
        if start % self.unit == 0:
            self._choose(start, min(start + self.unit, len(self.pruned)))
        return self.pruned[start:stop]

    def _choose(self, start: int, stop: int) -> None:
        # The root of w² / [H⁻¹]_jj: same order, no overflow.
        scores = self._columns.updated(slice(start, stop)).mul_(self._roots[start:stop]).abs_()
        if self._kept is not None:
            scores.masked_fill_(self._kept[start:stop], -1)
        if self._group is not None:
            keep, group = self._group
            chosen = lowest_of_few(scores, group - keep, dim=0)
        else:
            scores.masked_fill_(self._dead[start:stop, None], math.inf)
            choose = lowest_of_all if self._scope == "block" else lowest
            chosen = choose(scores.t(), self._quota[stop] - self._quota[start]).t()
        self.pruned[start:stop] |= chosen
        if self._kept is not None:
            self.pruned[start:stop] |= self._kept[start:stop]

    def _prune_dead(self, sparsity: float) -> None:
        """Choose the weights to prune in dead columns at once: no update ever reaches them."""
        dead = self._dead
        sizes = self._columns.work[dead].t().abs()
        if self._scope == "block":
            self.pruned[dead] = lowest_of_all(sizes, count_zeros(sparsity, sizes.numel())).t()
        else:
            self.pruned[dead] = lowest(sizes, count_zeros(sparsity, sizes.shape[1])).t()

    def _quotas(self, sparsity: float) -> list[int]:
        """Count the live weights (of the linear or of each row) to prune before column 0, 1, … columns.

        Zeros that are kept come first; the rest to prune is spread evenly over the other live weights.
        """
        columns, rows = self.pruned.shape
        counted = rows if self._scope == "block" else 1
        live = (~self._dead).cumsum(0).mul_(counted).tolist()
        zeros = [0] * columns
        if self._kept is not None and self._scope == "block":
            zeros = (self._kept.sum(1) * ~self._dead).cumsum(0).tolist()
        dead = counted * columns - live[-1]
        wanted = count_zeros(sparsity, counted * columns) - count_zeros(sparsity, dead)
        # Running totals are rounded, not the blocks' own counts: so the blocks add up to exactly what is wanted.
        more, others = max(wanted - zeros[-1], 0), max(live[-1] - zeros[-1], 1)
        return [
            0,
            *(zero + round(Fraction(more * (alive - zero), others)) for alive, zero in zip(live, zeros, strict=True)),
        ]
