"""How leaves are solved and grids fitted: by torch's operations, by what torch compiles for GPUs, or in C++ on CPUs."""

import functools
import logging
import shutil
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from typing import Any, Protocol

import torch
from torch import Tensor

from mbs_ray.errors import one_line
from mbs_ray.methods.cpu_kernel import CpuKernel
from mbs_ray.methods.cpu_library import WITHOUT_KERNEL, compiler, cpu_library
from mbs_ray.methods.cpu_moments import has_matrix_units
from mbs_ray.methods.grid import Grid, Quantization
from mbs_ray.methods.leaf import LEAF, Finals, LeafFactor, descend_leaf, solve_leaf, updated

_log = logging.getLogger(__name__)

#: Columns from which a linear is solved by what torch compiles: below, compiling (about 10 s in a process) takes longer
#: than it saves in a whole model. What is in C++ is compiled once for all processes.
LEAST_COLUMNS = 1024


class Kernel(Protocol):
    """What is done to the columns of one leaf, and to the weights of one group.

    All tensors of a leaf are [columns of the leaf, rows] and, but for grids, contiguous; those of the factor and the
    work are float32.
    """

    @property
    def most(self) -> int:
        """Columns of a leaf, at most."""

    def solve(self, work: Tensor, factor: LeafFactor, losses: Tensor, finals: Finals, written: Tensor) -> None:
        """Give the columns of a leaf their final values, in order, and update the later ones of the leaf.

        work: the weights as updated so far; on return how much each weight has changed since the beginning. losses:
        [rows] float64, to which those of the columns are added. written: the weights at the beginning; on return the
        final values.
        """

    def updated(self, work: Tensor, upper: Tensor, written: Tensor) -> Tensor:
        """Return what is best for any number of columns, all at once, as :meth:`Columns.updated` says; fresh."""

    def descend(self, work: Tensor, hessian: Tensor, finals: Finals, written: Tensor) -> None:
        """Give each column of a leaf, in order, the final value of least error while all others stay as they are.

        work: -1/2 times the gradient of the error, (W - Ŵ) H; on return how much each value has changed. hessian:
        [columns, columns], the leaf's block on the diagonal of H. written: the final values before and after.
        ``finals`` has no pattern.
        """

    def fit(
        self, weights: Tensor, importance: Tensor, before: tuple[Tensor, Tensor] | None, method: Quantization
    ) -> Grid:
        """Fit a grid to each row of a group's weights [columns, rows], as :meth:`Grid.of` says; [rows].

        importance: [columns, 1]; before: [1, rows] each.
        """


class TorchKernel:
    """torch's operations, compiled to one kernel for a leaf if asked for."""

    most = LEAF

    def __init__(self, dtype: torch.dtype, *, compiled: bool) -> None:
        self._dtype, self._compiled = dtype, compiled
        self._whole: dict[Callable[..., None], int] = {}

    def solve(self, work: Tensor, factor: LeafFactor, losses: Tensor, finals: Finals, written: Tensor) -> None:
        solve = self._kernel(solve_leaf, work)
        solve(work, factor.upper, factor.roots, factor.costs, losses, written, *_plain(finals), finals.pattern)

    def updated(self, work: Tensor, upper: Tensor, written: Tensor) -> Tensor:
        return updated(work, upper, written)

    def descend(self, work: Tensor, hessian: Tensor, finals: Finals, written: Tensor) -> None:
        self._kernel(descend_leaf, work)(work, hessian, written, *_plain(finals))

    def fit(
        self, weights: Tensor, importance: Tensor, before: tuple[Tensor, Tensor] | None, method: Quantization
    ) -> Grid:
        return Grid.of(weights, 0, method, self._dtype, before=before, importance=importance).squeezed(0)

    def _kernel(self, leaf: Callable[..., None], work: Tensor) -> Callable[..., None]:
        # What is left over at the end, smaller than the first leaf, is not worth a kernel of its own.
        whole = self._whole.setdefault(leaf, len(work))
        return _compiled(leaf) if self._compiled and len(work) == whole else leaf


def kernel_for(work: Tensor, dtype: torch.dtype) -> Kernel:
    """Choose how a weight of this dtype, held as [columns, rows], is solved; warn once where nothing compiles."""
    device = work.device.type
    if device == "cpu":
        library = cpu_library("kernels.cpp", dtype)
        return TorchKernel(dtype, compiled=False) if library is None else CpuKernel(library, dtype)
    return TorchKernel(dtype, compiled=len(work) >= least_columns(device) and can_compile(device))


def least_columns(device: str) -> int:
    """Return the columns from which a linear is solved by a kernel on this kind of device, where anything compiles."""
    return 1 if device == "cpu" else LEAST_COLUMNS


def kernel_here(device: str) -> str:
    """Name what solves such linears on a kind of device of this machine: C++, Triton, or torch where nothing compiles.

    "C++ and AMX" where second moments are summed on a CPU's matrix units, too. Nothing is compiled to find out: a
    compiler that is there and fails is taken for one that works.
    """
    if device == "cpu":
        with suppress(OSError, ValueError):
            compiler()
            return "C++ and AMX" if has_matrix_units() else "C++"
        return "torch"
    return "Triton" if find_spec("triton") and any(map(shutil.which, ("cc", "gcc", "clang"))) else "torch"


def _plain(finals: Finals) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, int]:
    """Codes, what is pruned, scale, zero point and top of the grid."""
    grid = finals.grid
    of_grid = (None, None, 0) if grid is None else (grid.scale, grid.zero, grid.top)
    return finals.codes, finals.pruned, *of_grid


@functools.cache
def _compiled(leaf: Callable[..., None]) -> Any:
    # Rounded where torch rounds: by default a value that is narrowed and widened again keeps all its bits, and Triton
    # divides approximately. One thread of the compiler: there is one kernel to compile, and no pool is left behind.
    options: dict[str, Any] = {
        "emulate_precision_casts": True,
        "eager_numerics.division_rounding": True,
        "compile_threads": 1,
    }
    return torch.compile(  # type: ignore[call-overload]  # torch's own overloads lack recompile_limit
        leaf, fullgraph=True, dynamic=True, recompile_limit=64, options=options
    )


@functools.cache
def can_compile(device: str) -> bool:
    """Tell whether torch compiles for a kind of device here, and warn in one line if not."""
    try:
        torch.compile(torch.Tensor.square)(torch.ones(8, device=device))
    except Exception as error:  # of a compiler that is missing, of Triton, of a folder: torch's own types are private
        _log.warning(WITHOUT_KERNEL, one_line(error))
        return False
    return True
