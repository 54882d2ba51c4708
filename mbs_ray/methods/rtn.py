"""Round to nearest: quantization without calibration."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mbs_ray.methods.grid import Grid, Quantization
from mbs_ray.methods.moments import Moment, Statistic
from mbs_ray.methods.precision import exact_float32
from mbs_ray.methods.result import Compressed, measured
from mbs_ray.methods.tensor_checks import check_tensors


@dataclass(frozen=True, kw_only=True)
class RTN(Quantization):
    """Quantization of every weight to the nearest value of its group's grid."""

    name: ClassVar[str] = "rtn"
    statistic: ClassVar[Statistic] = Statistic.NONE

    @exact_float32()
    def compress(self, weight: Tensor, moment: Moment | None, name: str = "linear") -> Compressed:
        """Quantize [rows, columns]; a moment, if given, only measures the loss."""
        rows, columns = check_tensors(weight, moment, name)
        self.check(rows, columns, name)
        group_size = self.group_size or columns
        groups = weight.float().unflatten(1, (-1, group_size))
        grid = Grid.of(groups, 2, self, weight.dtype)
        codes = grid.codes(groups)
        return measured(
            weight,
            grid.values(codes).flatten(1).to(weight.dtype),
            moment,
            name,
            codes=codes.flatten(1).to(torch.uint8),
            scales=grid.scale.squeeze(2).to(weight.dtype),
            zeros=grid.zero.squeeze(2).to(torch.uint8),
            group_size=group_size,
        )
