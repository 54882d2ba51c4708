"""GPTQ: quantization with the updates of Optimal Brain Surgeon."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mbs_ray.methods.column_grids import ColumnGrids
from mbs_ray.methods.factor import HessianFactor, hessian_factor
from mbs_ray.methods.factored import Factored
from mbs_ray.methods.field_checks import require_flag, whole_label
from mbs_ray.methods.grid import Quantization
from mbs_ray.methods.leaf import Finals
from mbs_ray.methods.moments import Moment, Statistic
from mbs_ray.methods.obs import solve_columns
from mbs_ray.methods.precision import exact_float32
from mbs_ray.methods.refine import Solved
from mbs_ray.methods.result import Compressed
from mbs_ray.methods.solver_result import solver_result
from mbs_ray.methods.tensor_checks import required_moment


@dataclass(frozen=True, kw_only=True)
class GPTQ(Factored, Quantization):
    """Quantization with OBS updates: Frantar et al., GPTQ, arXiv 2210.17323, section 3, algorithm 1.

    A group's grid is fitted to its weights as already updated when the group begins, see ColumnGrids. Later
    columns compensate for the difference to the value as written, rounded to the weight's dtype. Dead columns
    are rounded to nearest. Rows are independent: a caller may solve slices of rows with one factor.

    activation_order: solve the columns with the largest inputs first; groups are then static, so that the
    checkpoint needs no order of its own. keep_zeros: weights that are zero already stay zero.
    """

    name: ClassVar[str] = "gptq"
    statistic: ClassVar[Statistic] = Statistic.FULL

    activation_order: bool = False
    keep_zeros: bool = False

    def __post_init__(self) -> None:
        Factored.__post_init__(self)
        Quantization.__post_init__(self)
        require_flag(self.name, "activation_order", self.activation_order)
        require_flag(self.name, "keep_zeros", self.keep_zeros)

    @property
    def label(self) -> str:
        order = "-act" if self.activation_order else ""
        return whole_label(self, f"{self.name}-{self.quantization_label}{order}")

    def prepare(self, moment: Moment, name: str = "linear") -> HessianFactor:
        """Compute the factor of a full moment with tokens, which all linears with this input share."""
        moment = required_moment(moment, self.name, self.statistic, name)
        return hessian_factor(moment, self.damping, name, by_activation=self.activation_order)

    @exact_float32()
    def compress(
        self, weight: Tensor, moment: Moment | None, name: str = "linear", factor: HessianFactor | None = None
    ) -> Compressed:
        """Quantize [rows, columns] by a full moment."""
        moment, columns = self.begin(weight, moment, name, factor)
        grids = ColumnGrids(self, columns)
        zero = columns.work == 0 if self.keep_zeros else None

        def finals(start: int, stop: int) -> Finals:
            kept = None if zero is None else zero[start:stop]
            return Finals(kept, grid=grids.of_columns(start, stop), codes=grids.codes[start:stop])

        damped = solve_columns(columns, grids.units, finals)
        order = columns.factor.order
        if order is not None:
            own = torch.argsort(order)
            columns.written.copy_(columns.written[own])
            zero = None if zero is None else zero[own]
            grids.to_own_order(own)
        solved = Solved(weight, columns.written, zero, grids)
        return solver_result(solved, columns, damped, moment, self.refine, name)
