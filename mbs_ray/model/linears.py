"""The linears of a module, whatever class they are of and however their weight lies in memory.

Everywhere else a linear's weight is W [rows, columns] and y = W x. Most models hold it so (``nn.Linear``); GPT-2's
``Conv1D`` holds it as [columns, rows].
"""

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from mbs_ray.model.experts import routers_of


def linears_of(module: nn.Module) -> dict[str, nn.Module]:
    """Find all linears inside a module by their names, in its order; what routes tokens to experts is left alone."""
    routers = routers_of(module)
    found = ((name, one) for name, one in module.named_modules() if isinstance(one, nn.Linear | Conv1D))
    return {name: one for name, one in found if name not in routers}


def shape_of(linear: nn.Module) -> tuple[int, int]:
    """Return (rows, columns) of the weight: the numbers of output and of input features."""
    assert isinstance(linear.weight, Tensor)
    first, second = linear.weight.shape
    return (second, first) if lies_transposed(linear) else (first, second)


def weight_of(linear: nn.Module) -> Tensor:
    """Return the weight [rows, columns], not a copy."""
    assert isinstance(linear.weight, Tensor)
    return linear.weight.t() if lies_transposed(linear) else linear.weight


def bias_of(linear: nn.Module) -> Tensor | None:
    """Return the bias [rows]; None for a linear without one."""
    assert linear.bias is None or isinstance(linear.bias, Tensor)
    return linear.bias


def lies_transposed(linear: nn.Module) -> bool:
    """Check whether the weight is held as [columns, rows]."""
    return isinstance(linear, Conv1D)


def turned(weight: Tensor) -> Tensor:
    """Transpose [rows, columns] to [columns, rows] or back, into fresh memory: the same numbers, bit for bit."""
    return weight.t().contiguous()
