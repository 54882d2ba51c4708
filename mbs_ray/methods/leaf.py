"""The columns of one leaf of the OBS loop, in one pass over the rows.

What becomes of a row within a leaf depends on that row alone. So a leaf is one function of its tensors, and compiled
(to C++ for CPUs, to Triton for GPUs) it is one kernel that reads the weights once and writes errors, weights and codes
once. Uncompiled it is a dozen operations per column, of the same bits on CPUs.
"""

import functools
import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mbs_ray.errors import one_line
from mbs_ray.methods.grid import Grid
from mbs_ray.methods.sparsity import lowest_of_places

_log = logging.getLogger(__name__)

#: Columns that are solved in one pass.
LEAF = 8
#: Columns from which a linear's leaves are compiled: below, compiling takes longer than it saves in a whole model.
LEAST_COLUMNS = 2048


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


def solve_leaf(work: Tensor, upper: Tensor, finals: Finals, written: Tensor, *, compiled: bool) -> None:
    """Give the columns of a leaf their final values, in order, and update the later ones of the leaf.

    work: [columns, rows] float32, the weights as updated so far; on return the errors (w_j - q_j) / U_jj. upper:
    [columns, columns], the factor's block on the diagonal. written: [columns, rows], takes the final values q.
    """
    grid = finals.grid
    scale, zero, top = (None, None, 0) if grid is None else (grid.scale, grid.zero, grid.top)
    solve = _compiled() if compiled else _solve
    solve(work, upper, written, finals.codes, finals.pruned, scale, zero, top, finals.pattern)


def _solve(
    work: Tensor,
    upper: Tensor,
    written: Tensor,
    codes: Tensor | None,
    pruned: Tensor | None,
    scale: Tensor | None,
    zero: Tensor | None,
    top: int,
    pattern: tuple[int, int] | None,
) -> None:
    columns = list(work.unbind())
    chosen: list[Tensor] = []
    errors, values, numbers = [], [], []
    for j in range(len(columns)):
        if pattern is not None and not chosen:
            chosen = _chosen(columns, upper, pruned, j, pattern)
        value = columns[j]
        if pattern is not None:
            value = value.masked_fill(chosen.pop(0), 0)
        elif pruned is not None:
            value = value.masked_fill(pruned[j], 0)
        if scale is not None and zero is not None:
            number = ((value / scale[j]).round() + zero[j]).clamp(0, top)
            numbers.append(number.to(torch.uint8))
            value = (number - zero[j]) * scale[j]
        value = value.to(written.dtype)
        error = (columns[j] - value.to(torch.float32)) / upper[j, j]
        values.append(value)
        errors.append(error)
        if torch.compiler.is_compiling():  # column by column, so that all of them stay in one kernel
            for k in range(j + 1, len(columns)):
                columns[k] = columns[k] - upper[j, k] * error
        else:
            work[j + 1 :].sub_(upper[j, j + 1 :, None] * error)
    work.copy_(torch.stack(errors))
    written.copy_(torch.stack(values))
    if codes is not None:
        codes.copy_(torch.stack(numbers))


def _chosen(
    columns: list[Tensor], upper: Tensor, kept: Tensor | None, start: int, pattern: tuple[int, int]
) -> list[Tensor]:
    """Choose what to prune of the m columns from `start`, weights that are kept zero first."""
    stays, group = pattern
    own = range(start, start + group)
    # The root of w² / [H⁻¹]_jj: same order, no overflow.
    scores = [columns[j].abs() / upper[j, j] for j in own]
    if kept is None:
        return lowest_of_places(scores, group - stays)
    scores = [score.masked_fill(kept[j], -1) for j, score in zip(own, scores, strict=True)]
    return [low | kept[j] for j, low in zip(own, lowest_of_places(scores, group - stays), strict=True)]


@functools.cache
def _compiled() -> Any:
    # Rounded where torch rounds: by default a value that is narrowed and widened again keeps all its bits, and Triton
    # divides approximately. One thread of the compiler: there is one kernel to compile, and no pool is left behind.
    options: dict[str, Any] = {
        "emulate_precision_casts": True,
        "eager_numerics.division_rounding": True,
        "compile_threads": 1,
    }
    return torch.compile(  # type: ignore[call-overload]  # torch's own overloads lack recompile_limit
        _solve, fullgraph=True, dynamic=True, recompile_limit=64, options=options
    )


@functools.cache
def can_compile(device: str) -> bool:
    """Tell whether torch compiles for "cpu" or "cuda" here, and warn in one line if not."""
    try:
        torch.compile(torch.Tensor.square)(torch.ones(8, device=device))
    except Exception as error:  # of a compiler that is missing, of Triton, of a folder: torch's own types are private
        _log.warning("columns are solved without a kernel of their own, several times slower: %s", one_line(error))
        return False
    return True
