"""Optimal Brain Surgeon, column by column: the inverse factor of a Hessian and the loop that uses it.

Every row of the weight shares the Hessian H. When column j goes from w to its final value q, the best change
of the columns not yet final is -(w - q) / [H_j⁻¹]_00 times the first row of H_j⁻¹, where H_j is H without the
columns before j. With U upper triangular and UᵀU = H⁻¹, that row over that entry is U[j, j:] / U[j, j], so
one factor serves all columns (Frantar & Alistarh, SparseGPT, arXiv 2301.00774, section 3; Frantar et al.,
GPTQ, arXiv 2210.17323, section 3).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mbs_ray.errors import InputError
from mbs_ray.methods.fields import require_fraction, require_integer
from mbs_ray.methods.inputs import is_finite
from mbs_ray.methods.moments import Moment

FIRST_DAMPING = 1e-4
LAST_DAMPING = 1.0


@dataclass(frozen=True, eq=False)
class InverseFactor:
    """U with UᵀU = (H / mean diagonal of H's live columns + damping)⁻¹; OBS does not depend on H's scale.

    A dead column (no token ever activated it) stands alone with the mean diagonal: it neither receives nor
    causes an update.
    """

    upper: Tensor
    """[columns, columns] float32, upper triangular."""
    dead: Tensor
    """[columns] bool."""
    damping: float
    """Fraction of the mean diagonal that was added."""


def check_solver(method: str, block_size: object, damping: object) -> None:
    require_integer(method, "block_size", block_size, 1)
    require_fraction(method, "damping", damping, one=True)


def inverse_factor(moment: Moment, damping: float, name: str) -> InverseFactor:
    """Factor the inverse Hessian, raising the damping tenfold, up to 1, for as long as that fails.

    Holds at most three float32 buffers of columns² beside the moment. InputError if even damping 1 fails.
    """
    mean, dead = moment.live_mean(), moment.dead()
    while True:
        upper = _factor(moment.sum, mean, dead, damping)
        if upper is not None:
            return InverseFactor(upper, dead, damping)
        if damping >= LAST_DAMPING:
            raise InputError(
                f"{name}: the Hessian cannot be factorized, even with damping {LAST_DAMPING:g} "
                f"({moment.tokens} tokens for {moment.columns} columns); "
                "calibrate on more segments and look for overflowing activations"
            )
        damping = min(max(10 * damping, FIRST_DAMPING), LAST_DAMPING)


def _factor(sums: Tensor, mean: Tensor, dead: Tensor, damping: float) -> Tensor | None:
    # With J the reversal of order, J H J = L Lᵀ gives H = (J L J)(J L J)ᵀ with J L J upper triangular,
    # so U = J L⁻¹ J: one Cholesky and one triangular inverse.
    hessian = sums / mean
    hessian.diagonal().add_(dead).add_(damping)
    reversed_hessian = hessian.flip(0, 1)
    del hessian
    lower, failure = torch.linalg.cholesky_ex(reversed_hessian)
    del reversed_hessian
    if int(failure):
        return None
    inverse = torch.eye(len(lower), dtype=lower.dtype, device=lower.device)
    torch.linalg.solve_triangular(lower, inverse, upper=False, out=inverse)
    del lower
    upper = inverse.flip(0, 1)
    return upper if is_finite(upper) else None


def column_blocks(columns: int, block_size: int, unit: int = 1) -> list[tuple[int, int]]:
    """Cut columns into blocks [start, stop) of at most `block_size`.

    Units of `unit` columns (n:m groups, quantization groups) either lie inside one block or begin with one,
    so that every earlier column's update has reached the whole unit by the time it begins.
    """
    size = block_size - block_size % unit if unit <= block_size else block_size
    span = columns if unit <= block_size else unit
    return [
        (start, min(start + size, first + span))
        for first in range(0, columns, span)
        for start in range(first, first + span, size)
    ]


def solve_columns(
    columns: Tensor, upper: Tensor, blocks: list[tuple[int, int]], final: Callable[[int], Tensor]
) -> None:
    """Give every column its final value, in order, and let the later ones make up for the change; in place.

    columns: [columns, rows] float32, the weight transposed so that a column is contiguous. final(j) gives
    the final value [rows] of column j; when it is called, all updates have reached columns[j:] up to the end
    of j's block, and up to the last column if j begins a block.
    """
    pivots = upper.diagonal()
    for start, stop in blocks:
        errors = torch.empty_like(columns[start:stop])
        for j in range(start, stop):
            value = final(j)
            error = torch.div(columns[j] - value, pivots[j], out=errors[j - start])
            columns[j] = value
            columns[j + 1 : stop].addr_(upper[j, j + 1 : stop], error, alpha=-1)
        columns[stop:].addmm_(upper[start:stop, stop:].t(), errors, alpha=-1)


def transposed(weight: Tensor) -> Tensor:
    """A fresh contiguous float32 [columns, rows] copy of a weight [rows, columns]."""
    # Not weight.t().float().contiguous(): of one row or one column that is the caller's own memory.
    return torch.empty(weight.shape[::-1], dtype=torch.float32, device=weight.device).copy_(weight.t())
