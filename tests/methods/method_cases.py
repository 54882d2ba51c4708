"""Small linears with correlated inputs, for the tests of the methods."""

import torch
from torch import Tensor

from mbs_ray.methods import Moment, Statistic


def draw(
    rows: int, columns: int, *, seed: int = 0, tokens: int = 0, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """A weight [rows, columns] and inputs [tokens, columns] whose columns differ in size and correlate."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator).to(dtype)
    mixing = torch.randn(columns, columns, generator=generator) / columns**0.5
    mixing += 0.5 * torch.eye(columns)
    sizes = torch.exp(0.7 * torch.randn(columns, generator=generator))
    inputs = torch.randn(tokens or 4 * columns, columns, generator=generator) @ mixing * sizes
    return weight, inputs


def full_moment(inputs: Tensor) -> Moment:
    return collected(inputs, Statistic.FULL)


def collected(inputs: Tensor, statistic: Statistic) -> Moment:
    moment = Moment.zeros(inputs.shape[-1], statistic)
    moment.add(inputs)
    return moment


def hessian64(inputs: Tensor) -> Tensor:
    """2/tokens Σ x xᵀ in float64."""
    x = inputs.double()
    return 2 * x.T @ x / len(x)


def damped64(inputs: Tensor, damping: float) -> Tensor:
    hessian = hessian64(inputs)
    return hessian + damping * hessian.diagonal().mean() * torch.eye(len(hessian))
