"""Optimal Brain Surgeon, column by column.

Every row of the weight shares the Hessian H. When column j goes from w to its final value q, the best change
of the columns not yet final is -(w - q) / [H_j⁻¹]_00 times the first row of H_j⁻¹, where H_j is H without the
columns before j. With U upper triangular and UᵀU = H⁻¹, that row over that entry is U[j, j:] / U[j, j], so
one factor serves all columns (Frantar & Alistarh, SparseGPT, arXiv 2301.00774, section 3; Frantar et al.,
GPTQ, arXiv 2210.17323, section 3).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mbs_ray.methods.factor import InverseFactor
from mbs_ray.methods.leaf import LEAF, LEAST_COLUMNS, Finals, can_compile, solve_leaf
from mbs_ray.methods.moments import Moment

AT_ONCE = 64


def solve_columns(
    work: Tensor,
    upper: Tensor,
    units: Sequence[int],
    finals: Callable[[int, int], Finals],
    written: Tensor,
    leaf: int = LEAF,
) -> None:
    """Give every column its final value, in order, and update the later ones to compensate for the change.

    work: [columns, rows] float32, the weight transposed so that a column is contiguous; on return, row j holds
    the error e_j = (w_j - q_j) / U_jj. written: [columns, rows], takes the final values q. finals(start, stop)
    says what columns start … stop - 1 become, at most `leaf` of them. units: descending, each dividing the one
    before; when finals is called, all updates have reached work[start:] up to the end of start's unit (for
    every unit that begins at start), and start … stop - 1 lie in one unit of each kind.

    The columns are halved recursively: when the first half is final, one product updates the second. So most
    of the work is in a few large products, and every node of the recursion begins with its columns up to date.
    """
    leaf = min([leaf, *units])
    Columns(solve_leaf, work, upper, [*units, leaf], finals, written, compiles(work)).solve(0, len(work))


def compiles(work: Tensor) -> bool:
    """Return whether leaves of a weight [columns, rows] are compiled."""
    return len(work) >= LEAST_COLUMNS and can_compile(work.device.type)


# Not closures within solve_columns: a closure that calls itself keeps all that it sees, including the weight, alive
# until the next garbage collection.
@dataclass(frozen=True, eq=False)
class Columns:
    """Columns that a leaf makes final one after the other, halved recursively as :func:`solve_columns` says.

    What a leaf leaves in ``work`` reaches a later column k as -``square``[j, k] times column j; ``grain``: the units,
    and the size of a leaf.
    """

    leaf: Callable[..., None]
    work: Tensor
    square: Tensor
    grain: Sequence[int]
    finals: Callable[[int, int], Finals]
    written: Tensor
    compiled: bool

    def solve(self, start: int, stop: int) -> None:
        if stop - start <= self.grain[-1]:
            part = slice(start, stop)
            # What is left over at the end is not worth a kernel of its own.
            compiled = self.compiled and stop - start == self.grain[-1]
            finals = self.finals(start, stop)
            self.leaf(self.work[part], self.square[part, part], finals, self.written[part], compiled=compiled)
            return
        # Split at a multiple of the largest unit smaller than the range: then a unit always lies within one range, and
        # all columns before it have updated it when its first column is solved. The errors of the first half reach the
        # second in one product, -Uᵀ E, instead of one update per column.
        unit = next(unit for unit in self.grain if unit < stop - start)
        middle = start + -(-(stop - start) // unit) // 2 * unit
        self.solve(start, middle)
        self.work[middle:stop].addmm_(self.square[start:middle, middle:stop].t(), self.work[start:middle], alpha=-1)
        self.solve(middle, stop)


def damped_loss(errors: Tensor, factor: InverseFactor) -> Tensor:
    """Compute tr(dW (UᵀU)⁻¹ dWᵀ) from the errors that solve_columns leaves, a float64 scalar.

    dW = -E U with E the errors, so it is ‖E‖²: exact, and without a product.

    errors: [columns, rows] in the order of solving.
    """
    total = torch.zeros((), dtype=torch.float64, device=errors.device)
    # A dead column is decoupled, and as no token activates it, its error costs nothing.
    dead = factor.dead if factor.order is None else factor.dead[factor.order]
    for part, own in zip(errors.split(AT_ONCE), dead.split(AT_ONCE), strict=True):
        total += torch.linalg.vector_norm(part, dim=1).double().square().masked_fill(own, 0).sum()
    return total


def undamped_loss(damped: Tensor, weight: Tensor, final: Tensor, factor: InverseFactor, moment: Moment) -> float:
    """Compute tr(dW H dWᵀ) with H = 2/tokens Σ x xᵀ from the damped loss, less the damping's part of it.

    Accurate to float32's rounding of the damped loss, before refining.

    weight, final: [rows, columns] as it was and as it is written.
    """
    total = damped.clone()
    live = (~factor.dead).float()
    for before, after in zip(weight.split(AT_ONCE), final.split(AT_ONCE), strict=True):
        change = after.to(torch.float32, copy=True).sub_(before).mul_(live)
        total -= factor.damping * torch.linalg.vector_norm(change, dim=1).double().square().sum()
    return float((total.clamp(min=0) * factor.scale).item() * 2 / moment.tokens)
