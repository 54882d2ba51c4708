"""Leaves and grids in C++ on CPUs: the functions of cpp/kernels.cpp."""

import ctypes
from typing import Any

import torch
from torch import Tensor

from mbs_ray.methods.grid import Grid, Quantization, clip_shares, least_scale
from mbs_ray.methods.leaf import LEAF, Finals, LeafFactor, updated

_POINTER, _COUNT = ctypes.c_void_p, ctypes.c_int64


class _Leaf(ctypes.Structure):
    _fields_ = (
        *((name, _POINTER) for name in ("work", "written", "codes", "pruned", "scale", "zero", "square")),
        *((name, _POINTER) for name in ("roots", "costs", "losses", "best")),
        *((name, _COUNT) for name in ("columns", "rows", "square_stride", "grid_stride", "stays", "group")),
        ("top", ctypes.c_float),
    )


class _Group(ctypes.Structure):
    _fields_ = (
        *((name, _POINTER) for name in ("weights", "importance", "low", "high", "shares", "scale", "zero")),
        *((name, _COUNT) for name in ("columns", "rows", "tried")),
        *((name, ctypes.c_float) for name in ("top", "middle", "least_scale")),
        ("symmetric", ctypes.c_bool),
    )


class CpuKernel:
    """The functions of the compiled file, for weights of one dtype."""

    #: A tile of them and of 64 rows fits the first cache.
    most = 128

    def __init__(self, library: ctypes.CDLL, dtype: torch.dtype) -> None:
        self._library, self._dtype = library, dtype

    def solve(self, work: Tensor, factor: LeafFactor, losses: Tensor, finals: Finals, written: Tensor) -> None:
        fields = _fields(work, factor.upper, finals, written)
        fields |= {"roots": factor.roots, "costs": factor.costs, "losses": losses}
        fields["stays"], fields["group"] = finals.pattern or (0, 0)
        self._call("solve_leaf", _Leaf, fields)

    def updated(self, work: Tensor, upper: Tensor, written: Tensor) -> Tensor:
        if len(work) > self.most:
            return updated(work, upper, written)
        best = torch.empty_like(work)
        self._call("update_leaf", _Leaf, _fields(work, upper, Finals(), written) | {"best": best})
        return best

    def descend(self, work: Tensor, hessian: Tensor, finals: Finals, written: Tensor) -> None:
        self._call("descend_leaf", _Leaf, _fields(work, hessian, finals, written))

    def fit(
        self, weights: Tensor, importance: Tensor, before: tuple[Tensor, Tensor] | None, method: Quantization
    ) -> Grid:
        columns, rows = weights.shape
        grid = Grid(weights.new_empty(rows), weights.new_empty(rows), 2**method.bits - 1, self._dtype)
        shares = torch.tensor(clip_shares(), dtype=torch.float32, device="cpu") if method.clip_search else None
        low, high = before or (None, None)
        fields = {
            "weights": weights.contiguous(), "importance": importance.contiguous(), "low": low, "high": high,
            "shares": shares, "scale": grid.scale, "zero": grid.zero, "columns": columns, "rows": rows,
            "tried": 0 if shares is None else len(shares), "top": grid.top, "middle": 2 ** (method.bits - 1),
            "least_scale": least_scale(self._dtype), "symmetric": method.symmetric,
        }  # fmt: skip
        self._call("fit_group", _Group, fields)
        return grid

    def _call(self, function: str, kind: type[ctypes.Structure], fields: dict[str, Any]) -> None:
        # The tensors live in `fields` until the function returns.
        plain = {name: one.data_ptr() if isinstance(one, Tensor) else one for name, one in fields.items()}
        getattr(self._library, function)(ctypes.byref(kind(**plain)), _COUNT(torch.get_num_threads()))


def _fields(work: Tensor, square: Tensor, finals: Finals, written: Tensor) -> dict[str, Any]:
    columns, rows = work.shape
    lines = [one for one in (work, written, finals.pruned, finals.codes) if one is not None]
    group = finals.pattern[1] if finals.pattern else 1
    # What the kernels do not look at themselves: they would write where they must not.
    if columns > CpuKernel.most or group > LEAF or columns % group or not all(one.is_contiguous() for one in lines):
        raise ValueError(f"no leaf: {columns} columns, groups of {group}, strides {[one.stride() for one in lines]}")
    if square.stride(1) != 1:  # of a moment that was given column by column
        square = square.contiguous()
    fields = {"work": work, "written": written, "square": square, "columns": columns, "rows": rows}
    fields |= {"square_stride": square.stride(0), "pruned": finals.pruned}
    if finals.grid is not None:
        grid = finals.grid
        fields |= {"scale": grid.scale, "zero": grid.zero, "grid_stride": grid.scale.stride(0), "top": grid.top}
        fields["codes"] = finals.codes
    return fields
