"""The result of compressing one linear, and the measurement of its loss."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mbs_ray.errors import InputError
from mbs_ray.methods.moments import Moment, Statistic
from mbs_ray.methods.precision import exact_float32
from mbs_ray.methods.tensor_checks import is_finite

ROWS_AT_ONCE = 1024
COLUMNS_AT_ONCE = 1024


@dataclass(frozen=True, eq=False, kw_only=True)
class Compressed:
    """A compressed linear: its weight exactly as it is to be written, and what was measured.

    For quantized weights, `(codes - zeros) * scales`, computed in float32 and rounded to the weight's dtype,
    equals `weight` bit for bit; group g holds columns g * group_size onwards.
    """

    weight: Tensor
    """[rows, columns], shape and dtype of the weight given."""
    loss: float | None
    """tr(dW H dWᵀ), H = 2/tokens Σ x xᵀ, dW from the rounded weight; None without a full moment."""
    sparsity: float
    """Share of exact zeros in `weight`."""
    damping: float = 0.0
    """Relative damping (fraction of the mean diagonal of H) that was needed; 0 if none."""
    dead_columns: int = 0
    """Columns that no calibration token ever activated."""
    codes: Tensor | None = None
    """[rows, columns] uint8."""
    scales: Tensor | None = None
    """[rows, groups], dtype of `weight`."""
    zeros: Tensor | None = None
    """[rows, groups] uint8."""
    group_size: int | None = None


@exact_float32()
def output_error(before: Tensor, after: Tensor, moment: Moment) -> tuple[float, float]:
    """Compute tr(dW H dWᵀ), the mean squared change of the output, and the same over tr(W H Wᵀ).

    before, after: weights [rows, columns]; H = 2/tokens Σ x xᵀ of a full moment with tokens. Costs two products
    as large as the calibration forward of `columns` tokens, so no method computes the relative one.
    """
    loss = _mean_square(_quadratic(after, before, moment), moment)
    energy = _mean_square(_quadratic(before, None, moment), moment)
    return loss, loss / energy if energy else 0.0


def _mean_square(total: Tensor, moment: Moment) -> float:
    return float(total) * 2 / moment.tokens


@exact_float32()
def squared_outputs(weight: Tensor, moment: Moment) -> Tensor:
    """Compute Σ ‖W x‖² over the tokens of a full moment, a float64 scalar; weight: [rows, columns], any float dtype.

    In float32: inputs often have a large direction in common, of which the outputs have little.
    """
    return _quadratic(weight, None, moment).clamp_(min=0)


def _quadratic(weight: Tensor, minus: Tensor | None, moment: Moment) -> Tensor:
    """Compute tr(D M Dᵀ) of D = weight - minus and the raw sums M, a few rows at a time.

    M is symmetric, so that half of it is enough: rows · columns² operations.
    """
    total = torch.zeros((), dtype=torch.float64, device=weight.device)
    for start in range(0, len(weight), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        part = weight[rows].to(torch.float32)
        if minus is not None:
            part = part - minus[rows].to(torch.float32)
        for first in range(0, moment.columns, COLUMNS_AT_ONCE):
            own, later = slice(first, first + COLUMNS_AT_ONCE), slice(first + COLUMNS_AT_ONCE, None)
            for columns, times in ((own, 1), (later, 2)):
                product = part[:, columns] @ moment.sum[columns, own]
                total += times * product.mul_(part[:, own]).sum(dtype=torch.float64)
    return total


def _count_nonzero(weight: Tensor) -> int:
    # A few rows at a time: CUDA counts in int64, eight bytes for every weight.
    return int(sum(torch.count_nonzero(rows) for rows in weight.split(ROWS_AT_ONCE)))


def measured(
    original: Tensor,
    weight: Tensor,
    moment: Moment | None,
    name: str,
    *,
    loss: float | None = None,
    damping: float = 0.0,
    codes: Tensor | None = None,
    scales: Tensor | None = None,
    zeros: Tensor | None = None,
    group_size: int | None = None,
) -> Compressed:
    """Measure a method's compressed weight against the original; `loss`: given where the solver knows it already."""
    if not is_finite(weight):
        raise InputError(
            f"{name}: the compressed weight does not fit {weight.dtype}; "
            "use a checkpoint of wider range or more calibration segments"
        )
    if loss is None and moment is not None and moment.statistic is Statistic.FULL and moment.tokens > 0:
        loss = _mean_square(_quadratic(weight, original, moment), moment)
    dead = 0 if moment is None or moment.tokens == 0 else int(moment.dead().sum())
    return Compressed(
        weight=weight,
        loss=loss,
        sparsity=1 - _count_nonzero(weight) / max(weight.numel(), 1),
        damping=damping,
        dead_columns=dead,
        codes=codes,
        scales=scales,
        zeros=zeros,
        group_size=group_size,
    )
