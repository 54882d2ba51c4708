"""Coordinate descent after an OBS solver: every weight once more, now that all others have their values.

A solver makes columns final in order, and only later ones compensate for a change. With H damped as in the factor and
Δ = W - Ŵ, the error tr(Δ H Δᵀ) is quadratic in each value of Ŵ: with all others as they are, its least is at
ŵ_j + (Δ H)_j / H_jj, and the nearest value that mask and grid allow is the best of them. The scale of a grid has such a
best value, too. So a pass never raises the error, but for the rounding of scales to their dtype.

Codes by coordinate descent: Nair & Suggala, CDQuant, arXiv 2406.17542; the best weights for a given mask: Boža,
arXiv 2401.02938, who finds them by another way.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mbs_ray.methods.column_grids import ColumnGrids
from mbs_ray.methods.factor import InverseFactor
from mbs_ray.methods.leaf import LEAF, Finals, descend_leaf
from mbs_ray.methods.moments import Moment
from mbs_ray.methods.obs import Columns, compiles

#: Columns whose gradient is one product; groups are never cut, and larger ones than MOST keep their scales.
BLOCK = 128
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
    unit = group_size if group_size is not None and group_size <= MOST else BLOCK
    return unit, unit * max(1, BLOCK // unit)


def refine(solved: Solved, passes: int, factor: InverseFactor, moment: Moment, damped: Tensor, buffer: Tensor) -> None:
    """Take so many passes over the columns, and change the damped loss as they change it.

    damped: float64 scalar, tr(Δ H Δᵀ) in units of the factor. buffer: [columns, rows] float32, to be overwritten.
    """
    difference = buffer.copy_(solved.weight.t()).sub_(solved.written)
    compiled = compiles(difference)
    unit, block = unit_and_block(None if solved.grids is None else solved.grids.group_size)
    for _ in range(passes):
        for start in range(0, len(difference), block):
            _block(solved, slice(start, start + block), unit, factor, moment, difference, damped, compiled)


def _block(
    solved: Solved,
    block: slice,
    unit: int,
    factor: InverseFactor,
    moment: Moment,
    difference: Tensor,
    damped: Tensor,
    compiled: bool,
) -> None:
    hessian = moment.sum[block] / factor.scale
    dead = factor.dead[block]
    hessian[:, block].diagonal().add_(dead).add_(factor.damping)
    slopes = hessian @ difference
    for own, columns in _units(block, unit, len(slopes)):
        square, slope = hessian[own, columns], slopes[own]
        first, change = slope.clone(), difference[columns].clone()
        if solved.grids is not None and solved.grids.group_size == unit:
            _fit_scales(solved, solved.grids, columns, square, slope)
        _descend(solved, columns, square, slope, compiled)
        difference[columns].copy_(solved.weight[:, columns].t()).sub_(solved.written[columns])
        change -= difference[columns]
        # (Δ - C) H (Δ - C)ᵀ - Δ H Δᵀ; no token activates a dead column, so that it costs nothing.
        gain = (square @ change).sub_(first, alpha=2).mul_(change)
        damped += gain.sum(1, dtype=torch.float64).masked_fill(dead[own], 0).sum()
        slopes[own.stop :].addmm_(hessian[own.stop :, columns], change, alpha=-1)


def _units(block: slice, unit: int, columns: int) -> Iterator[tuple[slice, slice]]:
    """Yield the units of a block: their columns in it, and in the linear."""
    for start in range(0, columns, unit):
        stop = min(start + unit, columns)
        yield slice(start, stop), slice(block.start + start, block.start + stop)


def _fit_scales(solved: Solved, grids: ColumnGrids, group: slice, square: Tensor, slope: Tensor) -> None:
    """Give each row of a group the scale of least error for its codes, rounded as it will be stored."""
    grid, codes = grids.of_group(group.start // grids.group_size), grids.codes[group]
    steps = codes - grid.zero
    down = (steps * slope).sum(0)
    curved = (square @ steps).mul_(steps).sum(0)
    scale = (grid.scale + down / curved).to(grid.dtype).to(torch.float32)
    # Where all codes are zero nothing is to be fitted; a scale that is none would turn the codes around.
    scale = torch.where((curved > 0) & (scale > 0) & scale.isfinite(), scale, grid.scale)
    grids.set_scale(group.start // grids.group_size, scale)
    values = (steps * scale).to(grid.dtype)
    slope.addmm_(square, values.to(torch.float32) - solved.written[group], alpha=-1)
    solved.written[group] = values


def _descend(solved: Solved, columns: slice, square: Tensor, slope: Tensor, compiled: bool) -> None:
    grids, written = solved.grids, solved.written[columns]
    if solved.pruned is not None:
        pruned: Tensor | None = solved.pruned[columns]
    else:
        pruned = written == 0 if grids is None else None

    def finals(start: int, stop: int) -> Finals:
        zero = None if pruned is None else pruned[start:stop]
        if grids is None:
            return Finals(zero)
        part = slice(columns.start + start, columns.start + stop)
        return Finals(zero, grid=grids.as_they_stand(part), codes=grids.codes[part])

    leaf = min(LEAF, len(slope))
    Columns(descend_leaf, slope, square, [leaf], finals, written, compiled).solve(0, len(slope))
