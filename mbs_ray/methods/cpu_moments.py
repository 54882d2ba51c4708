"""Sums of x xᵀ on the matrix units of a CPU: cpp/moments.cpp."""

import ctypes
import functools
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from mbs_ray.methods.cpu_library import compiler, cpu_library

_POINTER, _COUNT = ctypes.c_void_p, ctypes.c_int64
#: bfloat16 numbers whose sum is a number of this dtype.
_PARTS = {torch.float32: 3, torch.bfloat16: 1, torch.float16: 2}
#: Tokens and columns of a tile.
_TILE = 32
#: Bytes of packed tokens: below what a stage gives back to the system when it is freed.
_PACKED_BYTES = 30 * 2**20
#: Tokens that are packed in any case: the sum, which does not stay in a cache, is read and written for each chunk.
_LEAST_TOKENS = 128


class _Tokens(ctypes.Structure):
    _fields_ = (
        *((name, _POINTER) for name in ("values", "sum", "packed")),
        *((name, _COUNT) for name in ("tokens", "columns", "stride", "chunk")),
    )


def has_matrix_units() -> bool:
    """Tell whether this CPU multiplies tiles of bfloat16 (AMX), and there is a compiler for what makes use of them."""
    with suppress(OSError, ValueError):
        compiler()
        return "amx_bf16" in Path("/proc/cpuinfo").read_text(errors="replace").split("\n\n")[0].split()
    return False


def add_squares(sum_: Tensor, tokens: Tensor) -> bool:
    """Add tokensᵀ tokens to the lower triangle of a float32 tensor on a CPU, in place; False where that cannot be done.

    sum_: [columns, columns]. tokens: [tokens, columns], of any float dtype. Sums are float32; products are
    exact for 16 bits, else to four roundings of float32, which leaves the sum over a microbatch as exact as torch's.
    """
    function = _function(tokens.dtype) if tokens.dtype in _PARTS else None
    if function is None or not sum_.is_contiguous() or tokens.device.type != "cpu":
        return False
    if tokens.stride(1) != 1:
        tokens = tokens.contiguous()
    count, columns = tokens.shape
    numbers = 2 * _PARTS[tokens.dtype] * _whole(columns)
    chunk = min(_whole(count), max(_LEAST_TOKENS, _PACKED_BYTES // (2 * numbers) // _TILE * _TILE))
    packed = torch.empty(numbers * chunk, dtype=torch.bfloat16, device="cpu")
    pointers = (tokens.data_ptr(), sum_.data_ptr(), packed.data_ptr())
    fields = _Tokens(*pointers, count, columns, tokens.stride(0), chunk)
    return bool(function(ctypes.byref(fields), _COUNT(torch.get_num_threads())))


@functools.cache
def _function(dtype: torch.dtype) -> Callable[..., bool] | None:
    library = cpu_library("moments.cpp", dtype) if has_matrix_units() else None
    if library is None:
        return None
    function = library.add_squares
    function.restype = ctypes.c_bool
    return function


def _whole(count: int) -> int:
    """Round up to whole tiles."""
    return (count + _TILE - 1) // _TILE * _TILE
