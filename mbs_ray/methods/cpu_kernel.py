"""Leaves and grids in C++ on CPUs: cpp/kernels.cpp, compiled by each process that needs it."""

import ctypes
import functools
import logging
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mbs_ray.errors import one_line
from mbs_ray.methods.grid import Grid, Quantization, clip_shares, least_scale
from mbs_ray.methods.leaf import LEAF, Finals, LeafFactor, updated

_log = logging.getLogger(__name__)

_SOURCE = Path(__file__).with_name("cpp") / "kernels.cpp"
_TYPES = {torch.float32: "float", torch.bfloat16: "c10::BFloat16", torch.float16: "c10::Half"}
#: Products and sums are not fused: they round where torch rounds.
_FLAGS = (
    "-std=c++17", "-O3", "-march=native", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fopenmp",
    "-shared", "-fPIC", "-Wl,--as-needed",
)  # fmt: skip
#: Said once in a process, with the reason.
WITHOUT_KERNEL = "columns are solved without a kernel of their own, several times slower: %s"
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


@functools.cache
def cpu_library(dtype: torch.dtype) -> ctypes.CDLL | None:
    """Compile kernels.cpp for weights of a dtype (2 s) and load it; None where that fails, with a warning of one line.

    Nothing is kept for other processes: what one CPU compiles for itself another one, with the same home, may not run.
    """
    try:
        with tempfile.TemporaryDirectory() as folder:
            built = Path(folder, "kernels.so")
            given = (f"-DSTORED={_TYPES[dtype]}", f"-I{Path(torch.__file__).parent / 'include'}", str(_SOURCE))
            command = [*shlex.split(compiler()), *_FLAGS, *given, *_loaded_openmp(), "-o", str(built)]
            subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=True, timeout=300)
            return ctypes.CDLL(str(built))
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        said = OSError(error.stderr) if isinstance(error, subprocess.CalledProcessError) else error
        _log.warning(WITHOUT_KERNEL, one_line(said))
        return None


def compiler() -> str:
    """Return the C++ compiler's command: that of the environment, or the first that there is, or would be."""
    return os.environ.get("CXX") or next(filter(shutil.which, ("g++", "c++")), "g++")


def _loaded_openmp() -> list[str]:
    """Return the file of the OpenMP that torch has loaded: threads of another one would wait for those, which spin."""
    maps, own = Path("/proc/self/maps"), str(Path(torch.__file__).parent)
    lines = maps.read_text(errors="replace").splitlines() if maps.exists() else []
    files = {line.split(maxsplit=5)[5] for line in lines if "/" in line}
    found = [file for file in files if re.match(r"lib(gomp|iomp5|omp)\b", Path(file).name)]
    return sorted(found, key=lambda file: (not file.startswith(own), file))[:1]
