"""The quantization grid: evenly spaced values, one scale and zero point per row and group of columns."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mbs_ray.errors import InputError
from mbs_ray.methods.fields import require_flag, require_integer


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """Fields shared by the methods that quantize.

    bits: 2 to 8. group_size: columns that share a scale, dividing the columns; None: the whole row.
    symmetric: the zero point is fixed in the middle of the codes.
    """

    name: ClassVar[str]

    bits: int = 4
    group_size: int | None = None
    symmetric: bool = False

    def __post_init__(self) -> None:
        require_integer(self.name, "bits", self.bits, 2, 8)
        if self.group_size is not None:
            require_integer(self.name, "group_size", self.group_size, 1)
        require_flag(self.name, "symmetric", self.symmetric)

    @property
    def label(self) -> str:
        group = "" if self.group_size is None else f"-g{self.group_size}"
        return f"{self.name}-{self.bits}bit{group}{'-sym' if self.symmetric else ''}"

    def check(self, rows: int, columns: int, name: str) -> None:
        """Raise InputError if a linear of this shape, called `name`, cannot take the groups."""
        if self.group_size is not None and columns % self.group_size:
            raise InputError(
                f"{name}: group_size {self.group_size} does not divide the {columns} columns of this linear; "
                "choose one that does, or leave it out for one group per row"
            )


@dataclass(frozen=True, eq=False)
class Grid:
    """Values (code - zero) * scale for codes 0 … top, as they read once rounded to `dtype`.

    scale and zero are float32; scale holds values of `dtype` exactly, zero whole numbers within the codes.
    """

    scale: Tensor
    zero: Tensor
    top: int
    dtype: torch.dtype

    @classmethod
    def covering(cls, low: Tensor, high: Tensor, bits: int, symmetric: bool, dtype: torch.dtype) -> "Grid":
        """The grid from `low` to `high` (float32, elementwise), zero always on it.

        The scale is rounded to the dtype in which it will be stored before anything is measured with it.
        Frantar et al., GPTQ, arXiv 2210.17323, section 4: min-max grids.
        """
        top = 2**bits - 1
        low, high = low.clamp(max=0), high.clamp(min=0)
        if symmetric:
            high = torch.maximum(-low, high)
            low = -high
        scale = ((high - low) / top).to(dtype).to(torch.float32)
        # A scale that rounds to zero would divide by zero; it becomes the smallest number that does not.
        numbers = torch.finfo(dtype)
        scale = scale.clamp(min=max(numbers.tiny * numbers.eps, torch.finfo(torch.float32).tiny))
        middle = torch.full_like(scale, 2 ** (bits - 1))
        zero = middle if symmetric else (-low / scale).round().clamp(0, top)
        return cls(scale, zero, top, dtype)

    def codes(self, values: Tensor) -> Tensor:
        """The nearest codes, as float32; values and grid broadcast."""
        return ((values / self.scale).round() + self.zero).clamp(0, self.top)

    def values(self, codes: Tensor) -> Tensor:
        """The weights that codes stand for, as they will be written: rounded to `dtype`, held in float32."""
        return ((codes - self.zero) * self.scale).to(self.dtype).to(torch.float32)
