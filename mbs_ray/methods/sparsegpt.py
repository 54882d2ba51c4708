"""SparseGPT: prune with the updates of Optimal Brain Surgeon."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from mbs_ray.methods.factor import HessianFactor
from mbs_ray.methods.factored import Factored
from mbs_ray.methods.field_checks import require_flag, require_integer
from mbs_ray.methods.leaf import LEAF, Finals
from mbs_ray.methods.moments import Moment, Statistic
from mbs_ray.methods.obs import solve_columns
from mbs_ray.methods.precision import exact_float32
from mbs_ray.methods.pruning_mask import PruningMask
from mbs_ray.methods.refine import Solved
from mbs_ray.methods.result import Compressed
from mbs_ray.methods.solver_result import solver_result
from mbs_ray.methods.sparsity import Pruning


@dataclass(frozen=True, kw_only=True)
class SparseGPT(Factored, Pruning):
    """Pruning with OBS updates: Frantar & Alistarh, SparseGPT, arXiv 2301.00774, section 3, algorithm 1.

    scope: "block" compares over all rows of a block of `block_size` columns, "row" within each row of it.
    block_size: columns whose mask is chosen at once (not a matter of speed).
    keep_zeros: weights that are zero already stay zero, and count as pruned.

    For the choice of weights see PruningMask. Later columns compensate for the difference to the value as written,
    rounded to the weight's dtype. Rows are independent, except for the counts of scope "block": a caller may solve
    slices of rows with one factor.
    """

    name: ClassVar[str] = "sparsegpt"
    scopes: ClassVar[tuple[str, ...]] = ("block", "row")
    statistic: ClassVar[Statistic] = Statistic.FULL

    block_size: int = 128
    keep_zeros: bool = False

    def __post_init__(self) -> None:
        Factored.__post_init__(self)
        Pruning.__post_init__(self)
        require_integer(self.name, "block_size", self.block_size, 1)
        require_flag(self.name, "keep_zeros", self.keep_zeros)

    @exact_float32()
    def compress(
        self, weight: Tensor, moment: Moment | None, name: str = "linear", factor: HessianFactor | None = None
    ) -> Compressed:
        """Prune [rows, columns] by a full moment; survivors are updated and rounded to the weight's dtype."""
        moment, columns = self.begin(weight, moment, name, factor)
        pattern = self.kept_of_group
        if pattern is not None and pattern[1] <= LEAF:
            kept = columns.work == 0 if self.keep_zeros else None
            damped = solve_columns(
                columns,
                [],
                lambda start, stop: Finals(None if kept is None else kept[start:stop], pattern),
                leaf=columns.kernel.most // pattern[1] * pattern[1],
            )
        else:
            mask = PruningMask(self, self.block_size, columns, self.keep_zeros)
            damped = solve_columns(columns, [mask.unit], lambda *own: Finals(mask.of_columns(*own)))
        return solver_result(Solved(weight, columns.written), columns, damped, moment, self.refine, name)
