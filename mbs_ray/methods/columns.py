"""The columns of a linear while they are solved."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mbs_ray.methods.factor import HessianFactor
from mbs_ray.methods.kernel import Kernel, kernel_for

#: Rows that are transposed at once: what is read stays in a CPU's cache until whole lines of it are written.
ROWS_AT_ONCE = 64


@dataclass(frozen=True, eq=False)
class Columns:
    """A weight transposed, so that a column is contiguous, in the order of its factor; solving changes it in place."""

    work: Tensor
    """[columns, rows] float32: how much each final column has changed; of the others, what would be best for them
    if all columns before them were to stay as they are now."""
    written: Tensor
    """[columns, rows] in the weight's dtype: final values, and of the other columns the weight."""
    factor: HessianFactor
    kernel: Kernel

    @classmethod
    def of(cls, weight: Tensor, factor: HessianFactor) -> "Columns":
        """Copy a weight [rows, columns]."""
        written = transposed(weight)
        if factor.order is not None:
            written = written[factor.order]
        work = written.to(torch.float32, copy=True)
        return cls(work, written, factor, kernel_for(work, weight.dtype))

    def updated(self, part: slice) -> Tensor:
        """Return what is best for these columns, all at once, if those before them are final; fresh, [columns, rows].

        That is the weight as Optimal Brain Surgeon has updated it. With R the work less the weight, the change C of
        the columns is that for which all terms of the loss vanish: c_j + Σ_{k<j} c_k s_kj = r_j.
        """
        return self.kernel.updated(self.work[part], self.factor.upper[part, part], self.written[part])


def transposed(matrix: Tensor, into: Tensor | None = None) -> Tensor:
    """Copy a matrix [m, n] to contiguous [n, m]: fresh, or into as many elements of its dtype."""
    # Not matrix.t().contiguous(): for a single row or column that is the caller's own memory.
    shape = matrix.shape[::-1]
    result = torch.empty(shape, dtype=matrix.dtype, device=matrix.device) if into is None else into.view(shape)
    at_once = len(matrix) if matrix.is_cuda else ROWS_AT_ONCE
    for own, rows in zip(result.split(at_once, dim=1), matrix.split(at_once), strict=True):
        own.copy_(rows.t())
    return result
