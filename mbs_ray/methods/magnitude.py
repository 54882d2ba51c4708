"""Magnitude pruning: the smallest weights of the linear become zero."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from mbs_ray.methods.moments import Moment, Statistic
from mbs_ray.methods.precision import exact_float32
from mbs_ray.methods.result import Compressed, measured
from mbs_ray.methods.sparsity import Pruning, count_zeros, lowest, lowest_of_all, lowest_of_groups
from mbs_ray.methods.tensor_checks import check_tensors


@dataclass(frozen=True, kw_only=True)
class Magnitude(Pruning):
    """Pruning of the smallest |w|, exactly as many as asked for.

    scope: "linear" prunes round(sparsity * rows * columns) of the whole linear, "row" round(sparsity * columns)
    of every row.
    """

    name: ClassVar[str] = "magnitude"
    scopes: ClassVar[tuple[str, ...]] = ("linear", "row")
    statistic: ClassVar[Statistic] = Statistic.NONE

    @exact_float32()
    def compress(self, weight: Tensor, moment: Moment | None, name: str = "linear") -> Compressed:
        """Prune [rows, columns]; a moment, if given, only measures the loss."""
        rows, columns = check_tensors(weight, moment, name)
        self.check(rows, columns, name)
        kept = self.kept_of_group
        if kept is not None:
            pruned = lowest_of_groups(weight.abs(), *kept)
        elif self.scope == "row":
            pruned = lowest(weight.abs(), count_zeros(self.sparsity, columns))
        else:
            pruned = lowest_of_all(weight.abs(), count_zeros(self.sparsity, rows * columns))
        return measured(weight, weight.masked_fill(pruned, 0), moment, name)
