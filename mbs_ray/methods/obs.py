"""Optimal Brain Surgeon, column by column.

Every row of the weight shares the Hessian H. With H = S P Sᵀ, S unit upper triangular and P diagonal, a change C of a
row costs C H Cᵀ = Σ_j p_j (c_j + Σ_{k<j} c_k s_kj)². So once the columns before j have changed, column j is best at
w_j - Σ_{k<j} c_k s_kj, and the square of what it misses of that costs p_j.

These are the updates of Optimal Brain Surgeon (Frantar & Alistarh, SparseGPT, arXiv 2301.00774, section 3; Frantar et
al., GPTQ, arXiv 2210.17323, section 3) without H⁻¹, which is half of the cost of their factor: what reaches a later
column is how much the earlier ones have changed since the beginning, not since their last update. So lattice points are
found (Babai's nearest plane), which GPTQ is said to be by Chen et al., arXiv 2507.18553.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mbs_ray.methods.columns import Columns
from mbs_ray.methods.factor import HessianFactor
from mbs_ray.methods.leaf import Finals, LeafFactor
from mbs_ray.methods.moments import Moment

AT_ONCE = 64


def solve_columns(
    columns: Columns, units: Sequence[int], finals: Callable[[int, int], Finals], leaf: int | None = None
) -> Tensor:
    """Give every column its final value, in order, and update the later ones to compensate for the change.

    finals(start, stop) says what columns start … stop - 1 become, at most `leaf` of them (left out: as many as the
    kernel takes at once). units: descending, each
    dividing the one before; when finals is called, all changes before start have reached the columns up to the end of
    start's unit (for every unit that begins at start), and start … stop - 1 lie in one unit of each kind.

    The columns are halved recursively: when the first half is final, one product updates the second. So most
    of the work is in a few large products, and every node of the recursion begins with its columns up to date.

    Returns tr(C (S P Sᵀ) Cᵀ) of the changes C, a float64 scalar.
    """
    work, written, factor, kernel = columns.work, columns.written, columns.factor, columns.kernel
    roots, costs = factor.pivots.sqrt(), factor.costs()
    losses = torch.zeros(work.shape[1], dtype=torch.float64, device=work.device)

    def solve(part: slice, finals: Finals) -> None:
        own = LeafFactor(factor.upper[part, part], roots[part], costs[part])
        kernel.solve(work[part], own, losses, finals, written[part])

    leaf = min([kernel.most if leaf is None else leaf, *units])
    Halving(solve, work, factor.upper, [*units, leaf], finals).solve(0, len(work))
    return losses.sum()


# Not closures within solve_columns: a closure that calls itself keeps all that it sees, including the weight, alive
# until the next garbage collection.
@dataclass(frozen=True, eq=False)
class Halving:
    """Columns that a leaf makes final one after the other, halved recursively as :func:`solve_columns` says.

    What a leaf leaves in ``work`` reaches a later column k as -``square``[j, k] times column j; ``grain``: the units,
    and the size of a leaf.
    """

    leaf: Callable[[slice, Finals], None]
    """Called with the columns and what they become."""
    work: Tensor
    square: Tensor
    grain: Sequence[int]
    finals: Callable[[int, int], Finals]

    def solve(self, start: int, stop: int) -> None:
        if stop - start <= self.grain[-1]:
            self.leaf(slice(start, stop), self.finals(start, stop))
            return
        # Split at a multiple of the largest unit smaller than the range: then a unit always lies within one range, and
        # all columns before it have updated it when its first column is solved. The changes of the first half reach the
        # second in one product instead of one update per column.
        unit = next(unit for unit in self.grain if unit < stop - start)
        middle = start + -(-(stop - start) // unit) // 2 * unit
        self.solve(start, middle)
        self.work[middle:stop].addmm_(self.square[start:middle, middle:stop].t(), self.work[start:middle], alpha=-1)
        self.solve(middle, stop)


def undamped_loss(damped: Tensor, change: Tensor, dead: Tensor, factor: HessianFactor, moment: Moment) -> float:
    """Compute tr(C H Cᵀ) with H = 2/tokens Σ x xᵀ from the damped loss, less the damping's part of it.

    Accurate to float32's rounding of the damped loss, before refining.

    change: [columns, rows] float32, C; dead: [columns] bool, in the same order.
    """
    total = damped.clone()
    for part, own in zip(change.split(AT_ONCE), dead.split(AT_ONCE), strict=True):
        squares = torch.linalg.vector_norm(part, dim=1).double().square()
        total -= factor.damping * squares.masked_fill(own, 0).sum()
    return float((total.clamp(min=0) * factor.scale).item() * 2 / moment.tokens)
