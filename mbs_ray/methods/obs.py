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
from mbs_ray.methods.moments import Moment

LEAF = 16
COLUMNS_AT_ONCE = 256


def solve_columns(
    work: Tensor, upper: Tensor, units: Sequence[int], final: Callable[[int], Tensor], written: Tensor
) -> None:
    """Give every column its final value, in order, and update the later ones to compensate for the change.

    work: [columns, rows] float32, the weight transposed so that a column is contiguous; on return, row j holds
    the error e_j = (w_j - q_j) / U_jj. written: [columns, rows], takes the final values q. final(j) gives q_j,
    [rows] float32, exactly as it will read from `written`. units: descending, each dividing the one before;
    when final(j) is called, all updates have reached work[j:] up to the end of j's unit (for every unit that
    begins at j).

    The columns are halved recursively: when the first half is final, one product updates the second. So most
    of the work is in a few large products, and every node of the recursion begins with its columns up to date.
    """
    _Columns(work, upper, [*units, LEAF], final, written).solve(0, len(work))


# Not closures within solve_columns: a closure that calls itself keeps all that it sees, including the weight, alive
# until the next garbage collection.
@dataclass(frozen=True, eq=False)
class _Columns:
    work: Tensor
    upper: Tensor
    grain: Sequence[int]
    final: Callable[[int], Tensor]
    written: Tensor

    def solve(self, start: int, stop: int) -> None:
        if stop - start <= LEAF:
            self._leaf(start, stop)
            return
        # Split at a multiple of the largest unit smaller than the range: then a unit always lies within one range, and
        # all columns before it have updated it when its first column is solved. The errors of the first half reach the
        # second in one product, -Uᵀ E, instead of one update per column.
        unit = next(unit for unit in self.grain if unit < stop - start)
        middle = start + -(-(stop - start) // unit) // 2 * unit
        self.solve(start, middle)
        self.work[middle:stop].addmm_(self.upper[start:middle, middle:stop].t(), self.work[start:middle], alpha=-1)
        self.solve(middle, stop)

    def _leaf(self, start: int, stop: int) -> None:
        work, upper, final, written, pivots = self.work, self.upper, self.final, self.written, self.upper.diagonal()
        # One column at a time: its error updates the rest of the leaf at once; solve() updates all columns after it.
        for j in range(start, stop):
            value = final(j)
            written[j] = value
            error = work[j].sub_(value).div_(pivots[j])
            work[j + 1 : stop].addr_(upper[j, j + 1 : stop], error, alpha=-1)


def solved_loss(errors: Tensor, weight: Tensor, written: Tensor, factor: InverseFactor, moment: Moment) -> float:
    """Compute tr(dW H dWᵀ) with H = 2/tokens Σ x xᵀ from the errors that solve_columns leaves.

    dW = -E U with E the errors, so tr(dW (UᵀU)⁻¹ dWᵀ) = ‖E‖², from which the damping's part is subtracted.
    This is exact, costs no product, and is accurate to float32's rounding of that damped loss.

    errors, written: [columns, rows] in their own order of solving; weight: [rows, columns] as it was.
    """
    total = torch.zeros((), dtype=torch.float64, device=weight.device)
    for start in range(0, len(written), COLUMNS_AT_ONCE):
        part = slice(start, start + COLUMNS_AT_ONCE)
        own = part if factor.order is None else factor.order[part]
        change = written[part].float() - weight[:, own].t()
        of_column = _squares(errors[part]) - factor.damping * _squares(change)
        # A dead column is decoupled, and as no token activates it, its error costs nothing.
        total += of_column.masked_fill(factor.dead[own], 0).sum()
    return float((total.clamp(min=0) * factor.scale).item() * 2 / moment.tokens)


def _squares(columns: Tensor) -> Tensor:
    """Compute the sum of squares of every row, float64."""
    return torch.linalg.vector_norm(columns, dim=1).double().square()
