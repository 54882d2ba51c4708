"""GPTQ: quantization with the updates of Optimal Brain Surgeon."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mbs_ray.methods.grid import Grid, Quantization
from mbs_ray.methods.inputs import check_tensors, required_moment
from mbs_ray.methods.moments import Moment, Statistic
from mbs_ray.methods.obs import check_solver, column_blocks, inverse_factor, solve_columns, transposed
from mbs_ray.methods.precision import exact_float32
from mbs_ray.methods.result import Compressed, measured


@dataclass(frozen=True, kw_only=True)
class GPTQ(Quantization):
    """Frantar et al., GPTQ, arXiv 2210.17323, section 3, algorithm 1; columns in their own order.

    A group's grid covers its weights as already updated when the group begins, whatever `block_size` is. What
    is compensated is the difference to the value as written, rounded to the weight's dtype. Dead columns are
    rounded to nearest.

    damping: fraction of the Hessian's mean diagonal added to it, raised tenfold (up to 1) where it is too
    little for a factorization.
    """

    name: ClassVar[str] = "gptq"
    statistic: ClassVar[Statistic] = Statistic.FULL

    block_size: int = 128
    damping: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        check_solver(self.name, self.block_size, self.damping)

    @exact_float32()
    def compress(self, weight: Tensor, moment: Moment | None, name: str = "linear") -> Compressed:
        """Quantize [rows, columns] by a full moment."""
        rows, columns = check_tensors(weight, moment, name)
        self.check(rows, columns, name)
        moment = required_moment(moment, self.name, self.statistic, name)
        factor = inverse_factor(moment, self.damping, name)
        work = transposed(weight)
        group_size = self.group_size or columns
        blocks = column_blocks(columns, self.block_size, group_size)
        codes = torch.empty_like(work, dtype=torch.uint8)
        grids: list[Grid] = []

        def final(j: int) -> Tensor:
            if j % group_size == 0:
                low, high = torch.aminmax(work[j : j + group_size], dim=0)
                grids.append(Grid.covering(low, high, self.bits, self.symmetric, weight.dtype))
            code = grids[-1].codes(work[j])
            codes[j] = code
            return grids[-1].values(code)

        solve_columns(work, factor.upper, blocks, final)
        return measured(
            weight,
            work.t().to(weight.dtype).contiguous(),
            moment,
            name,
            damping=factor.damping,
            codes=codes.t().contiguous(),
            scales=torch.stack([grid.scale for grid in grids], dim=1).to(weight.dtype),
            zeros=torch.stack([grid.zero for grid in grids], dim=1).to(torch.uint8),
            group_size=group_size,
        )
