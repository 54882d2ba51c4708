"""The columns of one leaf of the OBS loop, or of a pass of coordinate descent, in one pass over the rows.

What becomes of a row within a leaf depends on that row alone. So a leaf is one function of its tensors, here a dozen of
torch's operations per column, which torch also compiles to one kernel for GPUs; cpp/leaf.hpp is the same for CPUs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mbs_ray.methods.grid import Grid
from mbs_ray.methods.sparsity import lowest_of_places

#: Columns that are solved in one pass.
LEAF = 8


@dataclass(frozen=True, eq=False)
class Finals:
    """What the columns of a leaf become: zero where pruned, and of the rest the nearest value of a grid, if any.

    All tensors are [columns of the leaf, rows].
    """

    pruned: Tensor | None = None
    """bool; with a pattern, the weights that come first among those to prune."""
    pattern: tuple[int, int] | None = None
    """(n, m): of every m columns the n of highest score w² / [H⁻¹]_jj stay, chosen when the first of them is solved."""
    grid: Grid | None = None
    """One value per column and row."""
    codes: Tensor | None = None
    """uint8, takes the codes of the grid."""


@dataclass(frozen=True, eq=False)
class LeafFactor:
    """The factor's part of a leaf; all float32."""

    upper: Tensor
    """[columns, columns], S: only what is above the diagonal is read."""
    roots: Tensor
    """[columns], of the pivots: by which a column's weights are multiplied to be compared with those of others."""
    costs: Tensor
    """[columns], of the squares of a column's errors: the pivots, 0 for dead columns."""


def solve_leaf(
    work: Tensor,
    upper: Tensor,
    roots: Tensor,
    costs: Tensor,
    losses: Tensor,
    written: Tensor,
    codes: Tensor | None,
    pruned: Tensor | None,
    scale: Tensor | None,
    zero: Tensor | None,
    top: int,
    pattern: tuple[int, int] | None,
) -> None:
    """Do what :meth:`Kernel.solve` says, with the fields of factor and finals: what torch compiles takes tensors."""
    columns = list(work.unbind())
    chosen: list[Tensor] = []
    changes, values, numbers, loss = [], [], [], torch.zeros_like(columns[0])
    for j in range(len(columns)):
        if pattern is not None and not chosen:
            best = _updated(columns, written, upper, j, pattern[1])
            chosen = _chosen(best, roots[j:], None if pruned is None else pruned[j:], pattern)
        zeros = chosen.pop(0) if pattern is not None else None if pruned is None else pruned[j]
        value, number = _final(columns[j], written.dtype, zeros, scale, zero, top, j)
        final = value.to(torch.float32)
        loss = loss + (final - columns[j]).square() * costs[j]
        changes.append(final - written[j].to(torch.float32))
        values.append(value)
        numbers.append(number)
        _reach_later(columns, work, upper, j, changes[j])
    losses.add_(loss)
    _write_out(work, written, codes, changes, values, numbers)


def descend_leaf(
    work: Tensor,
    hessian: Tensor,
    written: Tensor,
    codes: Tensor | None,
    pruned: Tensor | None,
    scale: Tensor | None,
    zero: Tensor | None,
    top: int,
) -> None:
    """Do what :meth:`Kernel.descend` says."""
    columns = list(work.unbind())
    changes, values, numbers = [], [], []
    for j in range(len(columns)):
        before = written[j].to(torch.float32)
        best = before + columns[j] / hessian[j, j]
        value, number = _final(best, written.dtype, None if pruned is None else pruned[j], scale, zero, top, j)
        changes.append(value.to(torch.float32) - before)
        values.append(value)
        numbers.append(number)
        _reach_later(columns, work, hessian, j, changes[j])
    _write_out(work, written, codes, changes, values, numbers)


def _final(
    value: Tensor,
    dtype: torch.dtype,
    pruned: Tensor | None,
    scale: Tensor | None,
    zero: Tensor | None,
    top: int,
    column: int,
) -> tuple[Tensor, Tensor | None]:
    """Zero where pruned, and of the rest the nearest value of the column's grid, as it will be written; its code."""
    number = None
    if pruned is not None:
        value = value.masked_fill(pruned, 0)
    if scale is not None and zero is not None:
        steps = ((value / scale[column]).round() + zero[column]).clamp(0, top)
        number = steps.to(torch.uint8)
        value = (steps - zero[column]) * scale[column]
    return value.to(dtype), number


def _reach_later(columns: list[Tensor], work: Tensor, square: Tensor, column: int, change: Tensor) -> None:
    if torch.compiler.is_compiling():  # column by column, so that all of them stay in one kernel
        for k in range(column + 1, len(columns)):
            columns[k] = columns[k] - square[column, k] * change
    else:
        work[column + 1 :].sub_(square[column, column + 1 :, None] * change)


def _write_out(
    work: Tensor,
    written: Tensor,
    codes: Tensor | None,
    changes: list[Tensor],
    values: list[Tensor],
    numbers: list[Tensor | None],
) -> None:
    written.copy_(torch.stack(values))  # first: values may be views of the work
    work.copy_(torch.stack(changes))
    if codes is not None:
        codes.copy_(torch.stack([number for number in numbers if number is not None]))


def updated(work: Tensor, upper: Tensor, written: Tensor) -> Tensor:
    """Return what is best for some columns, all at once, as :meth:`Columns.updated` says."""
    # By the inverse of the small triangle: a product of it takes a fifth of the time of solving for every row.
    weight, own = written.to(torch.float32), upper.t()
    inverse = torch.eye(len(own), dtype=own.dtype, device=own.device)
    inverse = torch.linalg.solve_triangular(own, inverse, upper=False, unitriangular=True)
    return torch.addmm(weight, inverse, work - weight)


def _updated(columns: list[Tensor], written: Tensor, upper: Tensor, start: int, count: int) -> list[Tensor]:
    """Return what is best for some columns, all at once: Columns.updated within a leaf."""
    changes: list[Tensor] = []
    best = []
    for k in range(start, start + count):
        value = columns[k]
        for j, change in enumerate(changes, start):
            value = value - upper[j, k] * change
        changes.append(value - written[k].to(torch.float32))
        best.append(value)
    return best


def _chosen(best: list[Tensor], roots: Tensor, kept: Tensor | None, pattern: tuple[int, int]) -> list[Tensor]:
    """Choose what to prune of m columns, weights that are kept zero first."""
    stays, group = pattern
    # The root of w² / [H⁻¹]_jj: same order, no overflow.
    scores = [best[j].abs() * roots[j] for j in range(group)]
    if kept is None:
        return lowest_of_places(scores, group - stays)
    scores = [score.masked_fill(kept[j], -1) for j, score in enumerate(scores)]
    return [low | kept[j] for j, low in enumerate(lowest_of_places(scores, group - stays))]
