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
    compiled = len(work) >= LEAST_COLUMNS and can_compile(work.device.type)
    _Columns(work, upper, [*units, leaf], finals, written, compiled).solve(0, len(work))


# Not closures within solve_columns: a closure that calls itself keeps all that it sees, including the weight, alive
# until the next garbage collection.
@dataclass(frozen=True, eq=False)
class _Columns:
    work: Tensor
    upper: Tensor
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
            solve_leaf(self.work[part], self.upper[part, part], finals, self.written[part], compiled=compiled)
            return
        # Split at a multiple of the largest unit smaller than the range: then a unit always lies within one range, and
        # all columns before it have updated it when its first column is solved. The errors of the first half reach the
        # second in one product, -Uᵀ E, instead of one update per column.
        unit = next(unit for unit in self.grain if unit < stop - start)
        middle = start + -(-(stop - start) // unit) // 2 * unit
        self.solve(start, middle)
        self.work[middle:stop].addmm_(self.upper[start:middle, middle:stop].t(), self.work[start:middle], alpha=-1)
        self.solve(middle, stop)


def solved_loss(errors: Tensor, weight: Tensor, final: Tensor, factor: InverseFactor, moment: Moment) -> float:
    """Compute tr(dW H dWᵀ) with H = 2/tokens Σ x xᵀ from the errors that solve_columns leaves.

    dW = -E U with E the errors, so tr(dW (UᵀU)⁻¹ dWᵀ) = ‖E‖², from which the damping's part is subtracted.
    This is exact, costs no product, and is accurate to float32's rounding of that damped loss.

    errors: [columns, rows] in the order of solving; weight, final: [rows, columns] as it was and as it is written.
    """
    total = torch.zeros((), dtype=torch.float64, device=weight.device)
    # A dead column is decoupled, and as no token activates it, its error costs nothing.
    dead = factor.dead if factor.order is None else factor.dead[factor.order]
    for part, own in zip(errors.split(AT_ONCE), dead.split(AT_ONCE), strict=True):
        total += torch.linalg.vector_norm(part, dim=1).double().square().masked_fill(own, 0).sum()
    live = (~factor.dead).float()
    for before, after in zip(weight.split(AT_ONCE), final.split(AT_ONCE), strict=True):
        change = after.to(torch.float32, copy=True).sub_(before).mul_(live)
        total -= factor.damping * torch.linalg.vector_norm(change, dim=1).double().square().sum()
    return float((total.clamp(min=0) * factor.scale).item() * 2 / moment.tokens)
