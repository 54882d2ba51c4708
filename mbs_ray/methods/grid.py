"""The quantization grid: evenly spaced values, one scale and zero point per row and group of columns."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mbs_ray.errors import InputError
from mbs_ray.methods.field_checks import require_flag, require_integer, whole_label
from mbs_ray.methods.method_part import MethodPart

CLIP_STEPS = 40
LEAST_CLIP = 0.2


@dataclass(frozen=True, kw_only=True)
class Quantization(MethodPart):
    """Base of the methods that quantize: their fields.

    bits: 2 to 8. group_size: columns that share a scale, dividing the columns; null: the whole row.
    symmetric: the zero point is fixed in the middle of the codes. clip_search: every grid covers the share of
    its weights' range, out of 41 from 20 to 100 %, that rounds them with the least squared error (in OBS methods
    weighted by column, with the pivots of the factor).
    """

    bits: int = 4
    group_size: int | None = None
    symmetric: bool = False
    clip_search: bool = False

    def __post_init__(self) -> None:
        require_integer(self.name, "bits", self.bits, 2, 8)
        if self.group_size is not None:
            require_integer(self.name, "group_size", self.group_size, 1)
        require_flag(self.name, "symmetric", self.symmetric)
        require_flag(self.name, "clip_search", self.clip_search)

    @property
    def quantization_label(self) -> str:
        group = "" if self.group_size is None else f"-g{self.group_size}"
        return f"{self.bits}bit{group}{'-sym' if self.symmetric else ''}{'-clip' if self.clip_search else ''}"

    @property
    def label(self) -> str:
        return whole_label(self, f"{self.name}-{self.quantization_label}")

    def check(self, rows: int, columns: int, name: str) -> None:
        """Raise InputError if a linear of this shape, called `name`, cannot take the groups."""
        if self.group_size is not None and columns % self.group_size:
            raise InputError(
                f"{name}: group_size {self.group_size} does not divide the {columns} columns of this linear; "
                "choose one that does, or leave it out for one group per row"
            )


@dataclass(frozen=True, eq=False)
class Grid:
    """Grid of the values (code - zero) * scale for codes 0 … top, rounded to `dtype`.

    scale and zero are float32; scale holds values of `dtype` exactly, zero whole numbers within the codes.
    """

    scale: Tensor
    zero: Tensor
    top: int
    dtype: torch.dtype

    @classmethod
    def covering(cls, low: Tensor, high: Tensor, bits: int, symmetric: bool, dtype: torch.dtype) -> "Grid":
        """Return the grid from `low` to `high` (float32, elementwise), with zero always on it.

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
        scale = scale.clamp(min=least_scale(dtype))
        middle = torch.full_like(scale, 2 ** (bits - 1))
        zero = middle if symmetric else (-low / scale).round().clamp(0, top)
        return cls(scale, zero, top, dtype)

    @classmethod
    def of(
        cls,
        weights: Tensor,
        dim: int,
        method: Quantization,
        dtype: torch.dtype,
        *,
        before: tuple[Tensor, Tensor] | None = None,
        importance: Tensor | float = 1.0,
    ) -> "Grid":
        """Fit a grid to each slice of float32 weights along `dim`, which its scale and zero keep with size 1.

        The grid covers the weights or, where that rounds them with a smaller squared error, the part of their
        range within `before` (lowest and highest), or a smaller share of it (if the method searches). importance:
        weights of the squared errors, broadcast.
        """
        low, high = weights.amin(dim, keepdim=True), weights.amax(dim, keepdim=True)
        ranges = [(low, high)]
        if method.clip_search:
            ranges += [(low * share, high * share) for share in clip_shares()]
        elif before is not None:
            ranges.append((torch.maximum(low, before[0]), torch.minimum(high, before[1])))
        # Slice by slice the range of least error wins; the first one covers all weights, and is kept on a tie.
        grids = (cls.covering(*one, method.bits, method.symmetric, dtype) for one in ranges)
        best = next(grids)
        least = buffer = None
        for grid in grids:
            if least is None or buffer is None:
                buffer = torch.empty_like(weights)
                least = best._squared_error(weights, dim, importance, buffer)
            error = grid._squared_error(weights, dim, importance, buffer)
            better = error < least
            least = torch.where(better, error, least)
            scale, zero = torch.where(better, grid.scale, best.scale), torch.where(better, grid.zero, best.zero)
            best = cls(scale, zero, grid.top, dtype)
        return best

    def _squared_error(self, weights: Tensor, dim: int, importance: Tensor | float, buffer: Tensor) -> Tensor:
        """Sum the squared errors of values(codes(weights)); `buffer`, of the shape of the weights, is overwritten."""
        # Whole numbers: it makes no difference whether zero is added before they are clamped or taken from the bounds.
        steps = torch.div(weights, self.scale, out=buffer).round_().clamp_(-self.zero, self.top - self.zero)
        values = steps.mul_(self.scale)
        if self.dtype != torch.float32:
            values = values.copy_(values.to(self.dtype))
        return values.sub_(weights).square_().mul_(importance).sum(dim, keepdim=True)

    def squeezed(self, dim: int) -> "Grid":
        """Return the same grid without `dim`, a dimension of size 1."""
        return Grid(self.scale.squeeze(dim), self.zero.squeeze(dim), self.top, self.dtype)

    def codes(self, values: Tensor) -> Tensor:
        """Compute the nearest codes, as float32; values and grid broadcast."""
        return ((values / self.scale).round() + self.zero).clamp(0, self.top)

    def values(self, codes: Tensor) -> Tensor:
        """Compute the weights of codes, as they will be written: rounded to `dtype`, held in float32."""
        return ((codes - self.zero) * self.scale).to(self.dtype).to(torch.float32)


def clip_shares() -> list[float]:
    """Return the shares of a range that a search tries besides the whole of it."""
    return [1 - step * (1 - LEAST_CLIP) / CLIP_STEPS for step in range(1, CLIP_STEPS + 1)]


def least_scale(dtype: torch.dtype) -> float:
    """Return the smallest scale that does not divide by zero, stored in a dtype and used in float32."""
    numbers = torch.finfo(dtype)
    return max(numbers.tiny * numbers.eps, torch.finfo(torch.float32).tiny)
