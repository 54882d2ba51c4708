"""Joint pruning and quantization in one pass of Optimal Brain Surgeon."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from mbs_ray.errors import InputError
from mbs_ray.methods.column_grids import ColumnGrids
from mbs_ray.methods.factor import HessianFactor
from mbs_ray.methods.factored import Factored
from mbs_ray.methods.field_checks import require_integer, whole_label
from mbs_ray.methods.grid import Quantization
from mbs_ray.methods.leaf import Finals
from mbs_ray.methods.moments import Moment, Statistic
from mbs_ray.methods.obs import solve_columns
from mbs_ray.methods.precision import exact_float32
from mbs_ray.methods.pruning_mask import PruningMask
from mbs_ray.methods.refine import Solved
from mbs_ray.methods.result import Compressed
from mbs_ray.methods.solver_result import solver_result
from mbs_ray.methods.sparsity import Pruning


@dataclass(frozen=True, kw_only=True)
class SparseGPTQ(Factored, Pruning, Quantization):
    """Pruning as in SparseGPT and quantization of the survivors as in GPTQ, with updates that compensate for both.

    Frantar & Alistarh, SparseGPT, arXiv 2301.00774, section 3.5. The fields are those of the two methods. A
    group's grid covers the survivors where the group's mask is chosen by then.

    block_size: columns whose mask is chosen at once.
    """

    name: ClassVar[str] = "sparsegpt+gptq"
    scopes: ClassVar[tuple[str, ...]] = ("block", "row")
    statistic: ClassVar[Statistic] = Statistic.FULL

    block_size: int = 128

    def __post_init__(self) -> None:
        Factored.__post_init__(self)
        Quantization.__post_init__(self)
        Pruning.__post_init__(self)
        require_integer(self.name, "block_size", self.block_size, 1)
        if self._units is None:
            raise InputError(
                f"{self.name}: of group_size {self.group_size} and the {self._mask_unit} columns whose mask is chosen "
                "at once (block_size, or m of n:m) one must divide the other; change one of them"
            )

    @property
    def label(self) -> str:
        return whole_label(self, f"{self.name}-{self.pruning_label}-{self.quantization_label}")

    def check(self, rows: int, columns: int, name: str) -> None:
        """Raise InputError if a linear of this shape, called `name`, cannot take the pattern or the groups."""
        Pruning.check(self, rows, columns, name)
        Quantization.check(self, rows, columns, name)

    @property
    def _mask_unit(self) -> int:
        return self.kept_of_group[1] if self.kept_of_group else self.block_size

    @property
    def _units(self) -> list[int] | None:
        """Columns that must be up to date when the first of them is solved, descending; None if they overlap."""
        if self.group_size is None:
            return [self._mask_unit]
        larger, smaller = sorted((self.group_size, self._mask_unit), reverse=True)
        return [larger, smaller] if larger % smaller == 0 else None

    @exact_float32()
    def compress(
        self, weight: Tensor, moment: Moment | None, name: str = "linear", factor: HessianFactor | None = None
    ) -> Compressed:
        """Prune and quantize [rows, columns] by a full moment."""
        moment, columns = self.begin(weight, moment, name, factor)
        mask = PruningMask(self, self.block_size, columns, keep_zeros=False)
        grids = ColumnGrids(self, columns)

        def finals(start: int, stop: int) -> Finals:
            pruned = mask.of_columns(start, stop)
            grid = grids.of_columns(start, stop, mask.pruned)
            return Finals(pruned, grid=grid, codes=grids.codes[start:stop])

        damped = solve_columns(columns, self._units or [], finals)
        solved = Solved(weight, columns.written, mask.pruned, grids)
        return solver_result(solved, columns, damped, moment, self.refine, name)
