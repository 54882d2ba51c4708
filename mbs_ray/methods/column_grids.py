"""The grids and codes of one linear, made while its columns are solved."""

import torch
from torch import Tensor

from mbs_ray.methods.grid import Grid, Quantization


class ColumnGrids:
    """A grid per row and group of columns, from weights as they are when the group begins.

    With an order of solving, groups are static (GPTQ's released code calls them so): columns of one group are
    solved far apart, so all grids are taken from the weights before any update.
    """

    def __init__(self, method: Quantization, work: Tensor, dtype: torch.dtype, order: Tensor | None) -> None:
        """work: [columns, rows] float32, in the order of solving, as solve_columns changes it."""
        self._method, self._work, self._dtype = method, work, dtype
        self.group_size = method.group_size or len(work)
        self.unit = 1 if order is not None else self.group_size
        self.codes = torch.empty_like(work, dtype=torch.uint8)
        """[columns, rows], in the order of solving."""
        self._grids: list[Grid] = []
        self._group_of: list[int] | None = None
        if order is not None:
            self._group_of = (order // self.group_size).tolist()
            own = torch.argsort(order)
            self._grids = [self._covering(work[columns]) for columns in own.split(self.group_size)]

    def round(self, j: int, values: Tensor, pruned: Tensor | None = None) -> Tensor:
        """The nearest values of column j's grid, [rows]; columns must be asked for in order.

        pruned: [columns, rows] bool; a new group's grid need not cover what is known to become zero.
        """
        if self._group_of is None and j % self.group_size == 0:
            group = self._work[j : j + self.group_size]
            if pruned is not None:
                group = group.masked_fill(pruned[j : j + self.group_size], 0)
            self._grids.append(self._covering(group))
        grid = self._grids[j // self.group_size if self._group_of is None else self._group_of[j]]
        codes = grid.codes(values)
        self.codes[j] = codes
        return grid.values(codes)

    def scales(self) -> Tensor:
        """[rows, groups] in the dtype in which they are stored."""
        return torch.stack([grid.scale for grid in self._grids], dim=1).to(self._dtype)

    def zeros(self) -> Tensor:
        """[rows, groups] uint8."""
        return torch.stack([grid.zero for grid in self._grids], dim=1).to(torch.uint8)

    def _covering(self, group: Tensor) -> Grid:
        return Grid.of(group, 0, self._method, self._dtype).squeezed(0)
