"""What compressing one linear gives."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mbs_ray.errors import InputError
from mbs_ray.methods.inputs import is_finite
from mbs_ray.methods.moments import Moment, Statistic

ROWS_AT_ONCE = 1024


@dataclass(frozen=True, eq=False, kw_only=True)
class Compressed:
    """A compressed linear: its weight exactly as it is to be written, and what was measured.

    Quantized weights satisfy `((codes - zeros) * scales)`, computed in float32 and rounded to the weight's
    dtype, equal to `weight` bit for bit, where group g holds columns g * group_size onwards.
    """

    weight: Tensor
    """[rows, columns], shape and dtype of the weight given."""
    loss: float | None
    """tr(dW H dWᵀ), H = 2/tokens Σ x xᵀ, dW from the rounded weight; None without a full moment."""
    relative_loss: float | None
    """loss / tr(W H Wᵀ)."""
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


def _losses(original: Tensor, weight: Tensor, moment: Moment) -> tuple[float, float]:
    """tr(dW H dWᵀ) absolute, and relative to tr(W H Wᵀ)."""
    loss = torch.zeros((), dtype=torch.float64, device=weight.device)
    energy = torch.zeros_like(loss)
    for before, after in zip(original.split(ROWS_AT_ONCE), weight.split(ROWS_AT_ONCE), strict=True):
        before = before.to(torch.float32)
        change = after.to(torch.float32) - before
        loss += (change @ moment.sum).mul_(change).sum(dtype=torch.float64)
        energy += (before @ moment.sum).mul_(before).sum(dtype=torch.float64)
    if loss == 0:
        return 0.0, 0.0
    return float(loss) * 2 / moment.tokens, float(loss / energy)


def measured(
    original: Tensor,
    weight: Tensor,
    moment: Moment | None,
    name: str,
    *,
    damping: float = 0.0,
    codes: Tensor | None = None,
    scales: Tensor | None = None,
    zeros: Tensor | None = None,
    group_size: int | None = None,
) -> Compressed:
    """Measure the weight that a method returns against the original."""
    if not is_finite(weight):
        raise InputError(
            f"{name}: the compressed weight does not fit {weight.dtype}; "
            "use a checkpoint of wider range or more calibration segments"
        )
    loss = relative_loss = None
    if moment is not None and moment.statistic is Statistic.FULL and moment.tokens > 0:
        loss, relative_loss = _losses(original, weight, moment)
    dead = 0 if moment is None or moment.tokens == 0 else int(moment.dead().sum())
    return Compressed(
        weight=weight,
        loss=loss,
        relative_loss=relative_loss,
        sparsity=1 - int(torch.count_nonzero(weight)) / max(weight.numel(), 1),
        damping=damping,
        dead_columns=dead,
        codes=codes,
        scales=scales,
        zeros=zeros,
        group_size=group_size,
    )
