"""Grids and codes of one linear, computed while its columns are solved."""

import torch
from torch import Tensor

from mbs_ray.methods.factor import InverseFactor
from mbs_ray.methods.grid import Grid, Quantization


class ColumnGrids:
    """Grids of one linear, one per row and group of columns, fitted to the weights as updated when the group begins.

    Updates push a few weights far out, and covering these can cost all others more than clipping would cost them.
    So two grids are tried, one over the whole range and one over the part of it that lies within the group's range
    before any update, and the one with the smaller error is used, each column's squared error weighted by 1/U_jj².

    With an order of solving, groups are static: columns of one group are solved far apart, so all grids are
    fitted to the weights before any update.
    """

    def __init__(self, method: Quantization, work: Tensor, dtype: torch.dtype, factor: InverseFactor) -> None:
        """Prepare grids for `work`, [columns, rows] float32 in the order of solving, as solve_columns changes it."""
        self._method, self._work, self._dtype = method, work, dtype
        self.group_size = method.group_size or len(work)
        self.unit = 1 if factor.order is not None else self.group_size
        self.codes = torch.empty_like(work, dtype=torch.uint8)
        """[columns, rows], in the order of solving."""
        # 1/U_jj²: cost of a column's squared error once the later columns have compensated for it.
        self._importance = factor.upper.diagonal().square().reciprocal()[:, None]
        self._grids: list[Grid] = []
        if factor.order is None:
            groups = work.split(self.group_size)
            self._ranges = [torch.aminmax(group, dim=0, keepdim=True) for group in groups]
            self._group_of = [j // self.group_size for j in range(len(work))]
        else:
            self._group_of = (factor.order // self.group_size).tolist()
            for columns in torch.argsort(factor.order).split(self.group_size):
                self._grids.append(self.grid(work[columns], self._importance[columns], None))

    def round(self, j: int, values: Tensor, pruned: Tensor | None = None) -> Tensor:
        """Round to the nearest values of column j's grid, [rows]; columns must be asked for in order.

        pruned: [columns, rows] bool, weights known to become zero, which a new group's grid need not cover.
        """
        if self._group_of[j] == len(self._grids):
            # The first column of its group: the group's weights now carry all updates of earlier columns.
            group, part = self._group_of[j], slice(j, j + self.group_size)
            weights = self._work[part] if pruned is None else self._work[part].masked_fill(pruned[part], 0)
            self._grids.append(self.grid(weights, self._importance[part], self._ranges[group]))
        grid = self._grids[self._group_of[j]]
        codes = grid.codes(values)
        self.codes[j] = codes
        return grid.values(codes)

    def scales(self) -> Tensor:
        """Return the scales, [rows, groups], in the dtype in which they are stored."""
        return torch.stack([grid.scale for grid in self._grids], dim=1).to(self._dtype)

    def zeros(self) -> Tensor:
        """Return the zero points, [rows, groups] uint8."""
        return torch.stack([grid.zero for grid in self._grids], dim=1).to(torch.uint8)

    def grid(self, weights: Tensor, importance: Tensor, before: tuple[Tensor, Tensor] | None) -> Grid:
        grid = Grid.of(weights, 0, self._method, self._dtype, before=before, importance=importance)
        return grid.squeezed(0)
