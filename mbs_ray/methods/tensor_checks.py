"""Checks of the tensors that a method is given, before any arithmetic."""

import torch
from torch import Tensor

from mbs_ray.errors import InputError
from mbs_ray.methods.moments import Moment, Statistic

WEIGHT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def is_finite(tensor: Tensor) -> bool:
    """Tell whether no element is NaN or Inf; needs no temporary of the tensor's size."""
    low, high = torch.aminmax(tensor)  # both are NaN if any element is
    return bool(torch.isfinite(low) & torch.isfinite(high))


def check_tensors(weight: Tensor, moment: Moment | None, name: str) -> tuple[int, int]:
    """Return rows and columns of a weight; raise InputError, naming the linear, if it or the moment is unusable."""
    if weight.dim() != 2 or weight.numel() == 0 or weight.dtype not in WEIGHT_DTYPES:
        raise InputError(
            f"{name}: a weight must be [rows, columns] in float32, bfloat16 or float16, "
            f"got {weight.dtype} of shape {list(weight.shape)}"
        )
    if not is_finite(weight):
        raise InputError(f"{name}: the weight holds NaN or Inf; repair the checkpoint")
    rows, columns = weight.shape
    if moment is not None:
        _check_moment(moment, columns, name)
    return rows, columns


def _check_moment(moment: Moment, columns: int, name: str) -> None:
    if moment.columns != columns:
        raise InputError(
            f"{name}: the moment has {moment.columns} columns, the weight {columns}; "
            "collect the moment at the input of this linear"
        )
    if not is_finite(moment.sum):
        raise InputError(
            f"{name}: the second moment holds NaN or Inf; "
            "look for overflowing activations (compute in float32 or bfloat16)"
        )


def required_moment(moment: Moment | None, method: str, statistic: Statistic, name: str) -> Moment:
    """Return the moment if it holds tokens and the statistic that a method needs; else raise InputError."""
    if moment is None:
        raise InputError(f"{name}: {method} needs the {statistic.value} moment, got none")
    if statistic is Statistic.FULL and moment.statistic is not Statistic.FULL:
        raise InputError(f"{name}: {method} needs the full moment, got the {moment.statistic.value} one")
    if moment.tokens == 0:
        raise InputError(f"{name}: the moment holds no token; calibrate on at least one segment")
    return moment
