"""Coordinate descent after an OBS solver: every weight once more, now that all others have their values.

A solver makes columns final in order, and only later ones compensate for a change. With H damped as in the factor and
Δ = W - Ŵ, the error tr(Δ H Δᵀ) is quadratic in each value of Ŵ: with all others as they are, its least is at
ŵ_j + (Δ H)_j / H_jj, and the nearest value that mask and grid allow is the best of them. The scale of a grid has such a
best value, too. So a pass never raises the error, but for the rounding of scales to their dtype.

Codes by coordinate descent: Nair & Suggala, CDQuant, arXiv 2406.17542; the best weights for a given mask: Boža,
arXiv 2401.02938, who finds them by another way.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mbs_ray.methods.column_grids import ColumnGrids
from mbs_ray.methods.columns import Columns
from mbs_ray.methods.factor import HessianFactor
from mbs_ray.methods.kernel import Kernel
from mbs_ray.methods.leaf import Finals
from mbs_ray.methods.moments import Moment
from mbs_ray.methods.obs import Halving

#: Columns whose gradient is one product, and of these, without groups, those whose changes reach the others together.
BLOCK, UNIT = 512, 128
#: Groups of more columns keep their scales.
MOST = 1024


@dataclass(frozen=True, eq=False)
class Solved:
    """What a solver leaves of one linear, all with columns as they stand, [columns, rows]."""

    weight: Tensor
    """As it was, [rows, columns]."""
    written: Tensor
    """The final values, which refining changes."""
    pruned: Tensor | None = None
    """bool, stays zero; None: what is zero stays so where there are no grids."""
    grids: ColumnGrids | None = None


def unit_and_block(group_size: int | None) -> tuple[int, int]:
    """Return the columns whose changes reach all others together, and those whose gradient is one product."""
    unit = group_size if group_size is not None and group_size <= MOST else UNIT
    return unit, unit * max(1, BLOCK // unit)


def refine(solved: Solved, passes: int, columns: Columns, moment: Moment, damped: Tensor) -> None:
    """Take so many passes over the columns, and change the damped loss as they change it.

    damped: float64 scalar, tr(Δ H Δᵀ) in units of the factor. columns: their work becomes Δ, with columns as they
    stand.
    """
    difference = columns.work.copy_(solved.weight.t()).sub_(solved.written)
    descent = _Descent(solved, columns.factor, moment, damped, difference, columns.kernel)
    for _ in range(passes):
        descent.over_all()


@dataclass(frozen=True, eq=False)
class _Descent:
    solved: Solved
    factor: HessianFactor
    moment: Moment
    damped: Tensor
    difference: Tensor
    """Δ, [columns, rows]."""
    kernel: Kernel

    def over_all(self) -> None:
        grids = self.solved.grids
        unit, block = unit_and_block(None if grids is None else grids.group_size)
        for start in range(0, len(self.difference), block):
            self.over_block(slice(start, start + block), unit)

    def over_block(self, block: slice, unit: int) -> None:
        hessian = self.moment.sum[block] / self.factor.scale
        hessian[:, block].diagonal().add_(self.factor.dead[block]).add_(self.factor.damping)
        slopes = hessian @ self.difference
        for start in range(0, len(slopes), unit):
            stop = min(start + unit, len(slopes))
            columns = slice(block.start + start, block.start + stop)
            change = self.over_unit(columns, hessian[start:stop, columns], slopes[start:stop])
            slopes[stop:].addmm_(hessian[stop:, columns], change, alpha=-1)
            del change  # not beside the next one's

    def over_unit(self, columns: slice, square: Tensor, slope: Tensor) -> Tensor:
        """Return the change of the values, C; slope: (Δ H) of the columns, to be overwritten."""
        grids, written = self.solved.grids, self.solved.written[columns]
        first, before = slope.clone(), written.clone()
        if grids is not None and grids.group_size == len(written):
            dead = self.factor.dead[columns, None]
            _fit_scales(grids, columns.start // grids.group_size, written, square, slope, dead)
        self.descend(columns, square, slope)
        change = written.to(torch.float32, copy=True).sub_(before)
        self.difference[columns] -= change
        # (Δ - C) H (Δ - C)ᵀ - Δ H Δᵀ; no token activates a dead column, so that it costs nothing.
        gain = (square @ change).sub_(first, alpha=2).mul_(change).sum(1, dtype=torch.float64)
        self.damped.add_(gain.masked_fill(self.factor.dead[columns], 0).sum())
        return change

    def descend(self, columns: slice, square: Tensor, slope: Tensor) -> None:
        grids, written, pruned = self.solved.grids, self.solved.written[columns], self.solved.pruned
        if pruned is not None:
            pruned = pruned[columns]
        elif grids is None:
            pruned = written == 0

        def finals(start: int, stop: int) -> Finals:
            zero = None if pruned is None else pruned[start:stop]
            if grids is None:
                return Finals(zero)
            part = slice(columns.start + start, columns.start + stop)
            return Finals(zero, grid=grids.as_they_stand(part), codes=grids.codes[part])

        def leaf(part: slice, finals: Finals) -> None:
            self.kernel.descend(slope[part], square[part, part], finals, written[part])

        Halving(leaf, slope, square, [min(self.kernel.most, len(slope))], finals).solve(0, len(slope))


def _fit_scales(grids: ColumnGrids, group: int, written: Tensor, square: Tensor, slope: Tensor, dead: Tensor) -> None:
    """Give each row of a group the scale of least error for its codes, rounded as it will be stored.

    What no token activates costs nothing, and has no say.
    """
    grid = grids.of_group(group)
    steps = grids.codes[group * grids.group_size :][: len(written)] - grid.zero
    live = steps.masked_fill(dead, 0)
    down = (live * slope).sum(0)
    curved = (square @ live).mul_(live).sum(0)
    del live
    scale = (grid.scale + down / curved).to(grid.dtype).to(torch.float32)
    # Where all codes are zero nothing is to be fitted; a scale that is none would turn the codes around.
    scale = torch.where((curved > 0) & (scale > 0) & scale.isfinite(), scale, grid.scale)
    grids.set_scale(group, scale)
    values = steps.mul_(scale).to(grid.dtype)
    slope.addmm_(square, values.to(torch.float32) - written, alpha=-1)
    written.copy_(values)
