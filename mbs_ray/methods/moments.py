"""Second moments of the activations that enter a linear."""

import enum
from dataclasses import dataclass

import torch
from torch import Tensor

from mbs_ray.methods.cpu_moments import add_squares
from mbs_ray.methods.precision import exact_float32

#: Columns of a panel, by whether it is on a GPU: narrow ones waste less above the diagonal, wide ones launch less.
_PANEL = {False: 256, True: 1024}


class Statistic(enum.Enum):
    """Statistic of a linear's inputs that a method needs."""

    NONE = "none"
    DIAGONAL = "diagonal"
    FULL = "full"


def moment_bytes(statistic: Statistic, columns: int) -> int:
    """Compute the bytes of a moment at an input of this many columns."""
    return 4 * {Statistic.NONE: 0, Statistic.DIAGONAL: columns, Statistic.FULL: columns**2}[statistic]


@dataclass(eq=False)
class Moment:
    """Raw sums over calibration tokens at a linear's input, never averages, so that parts add up.

    `sum` is float32: sum of x xᵀ, [columns, columns], for FULL; sum of x², [columns], for DIAGONAL.
    """

    statistic: Statistic
    columns: int
    tokens: int
    sum: Tensor

    def __post_init__(self) -> None:
        if self.statistic is Statistic.NONE:
            raise ValueError("a moment is diagonal or full; a method that needs no statistic takes None")
        shape = (self.columns,) * (2 if self.statistic is Statistic.FULL else 1)
        if tuple(self.sum.shape) != shape or self.sum.dtype != torch.float32:
            raise ValueError(
                f"the sum of a {self.statistic.value} moment of {self.columns} columns is float32 of shape "
                f"{shape}, got {self.sum.dtype} of shape {tuple(self.sum.shape)}"
            )

    @classmethod
    def zeros(cls, columns: int, statistic: Statistic, device: torch.device | str = "cpu") -> "Moment":
        shape = (columns, columns) if statistic is Statistic.FULL else (columns,)
        return cls(statistic, columns, 0, torch.zeros(shape, dtype=torch.float32, device=device))

    def add(self, inputs: Tensor) -> None:
        """Add tokens, [..., columns], of any float dtype; products and sums are float32, in place."""
        self.accumulate(inputs)
        self.complete()

    @exact_float32()
    def accumulate(self, inputs: Tensor) -> None:
        """Add tokens as :meth:`add`, but leave a full moment to be completed: its upper triangle is not up to date."""
        if inputs.shape[-1] != self.columns:
            raise ValueError(f"inputs have {inputs.shape[-1]} columns, the moment has {self.columns}")
        tokens = inputs.reshape(-1, self.columns)
        if self.statistic is Statistic.FULL:
            self._add_square(tokens)
        else:
            self.sum += tokens.to(torch.float32).square().sum(0)
        self.tokens += tokens.shape[0]

    def complete(self) -> None:
        """Mirror the lower triangle of a full moment to the upper one, once after many :meth:`accumulate`."""
        if self.statistic is Statistic.FULL:
            for start, stop in self._panels():
                on_diagonal = self.sum[start:stop, start:stop]
                on_diagonal.copy_(on_diagonal.tril() + on_diagonal.tril(-1).t())
                self.sum[start:stop, stop:] = self.sum[stop:, start:stop].t()

    def _add_square(self, tokens: Tensor) -> None:
        """Add tokensᵀ tokens to the lower triangle, in panels of columns or by a CPU's matrix units."""
        if self.sum.device.type == "cpu" and add_squares(self.sum, tokens):
            return
        tokens = tokens.to(torch.float32) if _is_wide(tokens) else tokens
        for start, stop in self._panels():
            add_product(self.sum[start:, start:stop], tokens[:, start:], tokens[:, start:stop])

    def _panels(self) -> list[tuple[int, int]]:
        width = _PANEL[self.sum.is_cuda]
        return [(start, min(start + width, self.columns)) for start in range(0, self.columns, width)]

    def merge(self, other: "Moment") -> None:
        """Add the tokens of another moment of the same linear, in place."""
        if (self.statistic, self.columns) != (other.statistic, other.columns):
            raise ValueError(
                f"cannot merge a {other.statistic.value} moment of {other.columns} columns "
                f"into a {self.statistic.value} moment of {self.columns}"
            )
        self.sum += other.sum.to(self.sum.device)
        self.tokens += other.tokens

    def diagonal(self) -> Tensor:
        """Return the sum of x² per column, [columns] float32, for either statistic."""
        return self.sum.diagonal() if self.statistic is Statistic.FULL else self.sum

    def dead(self) -> Tensor:
        """Mark the columns that no token ever activated, [columns] bool."""
        return self.diagonal() == 0

    def live_mean(self) -> Tensor:
        """Return the mean of the diagonal over the columns that are not dead, a scalar; 1 if all are."""
        mean = self.diagonal().sum() / (~self.dead()).sum().clamp(min=1)
        return torch.where(mean > 0, mean, 1)

    def hessian(self) -> Tensor:
        """Compute the Hessian of the mean squared output error, 2/tokens of the sum, [columns, columns]."""
        if self.statistic is not Statistic.FULL:
            raise ValueError("a Hessian needs the full moment, not its diagonal")
        if self.tokens == 0:
            raise ValueError("a Hessian needs at least one token")
        return self.sum * (2 / self.tokens)


def add_product(sum_: Tensor, left: Tensor, right: Tensor) -> None:
    """Add leftᵀ right to a float32 tensor in place; left, right: tokens of one float dtype, [tokens, columns]."""
    if _is_wide(left):
        sum_.addmm_(left.to(torch.float32).t(), right.to(torch.float32))
    else:
        sum_ += torch.mm(left.t(), right, out_dtype=torch.float32)


def _is_wide(tokens: Tensor) -> bool:
    """CUDA multiplies 16-bit numbers exactly and sums them in float32 at many times the speed of float32."""
    return not (tokens.is_cuda and tokens.dtype in (torch.bfloat16, torch.float16))
