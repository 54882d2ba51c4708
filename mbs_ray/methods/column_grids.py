"""Grids and codes of one linear, computed while its columns are solved."""

import torch
from torch import Tensor

from mbs_ray.methods.columns import Columns
from mbs_ray.methods.grid import Grid, Quantization


class ColumnGrids:
    """Grids of one linear, one per row and group of columns, fitted to the weights as updated when the group begins.

    Updates push a few weights far out, and covering these can cost all others more than clipping would cost them.
    So two grids are tried, one over the whole range and one over the part of it that lies within the group's range
    before any update, and the one with the smaller error is used, each column's squared error weighted by its pivot.

    With an order of solving, groups are static: columns of one group are solved far apart, so all grids are
    fitted to the weights before any update.
    """

    def __init__(self, method: Quantization, solved: Columns) -> None:
        """Prepare grids for columns as solve_columns changes them."""
        work, factor = solved.work, solved.factor
        self._method, self._solved, self._dtype = method, solved, solved.written.dtype
        columns, rows = work.shape
        self.group_size = method.group_size or columns
        self.codes = torch.empty_like(work, dtype=torch.uint8)
        """[columns, rows], in the order of solving."""
        self._importance = factor.pivots[:, None]
        self._scale = work.new_empty(columns // self.group_size, rows)
        self._zero = torch.empty_like(self._scale)
        self._group_of: Tensor | None = None
        if factor.order is None:
            self.units = [self.group_size]
            groups = work.split(self.group_size)
            self._ranges = [(group.amin(0, keepdim=True), group.amax(0, keepdim=True)) for group in groups]
        else:
            self.units = []
            self._group_of = factor.order // self.group_size
            for group, own in enumerate(torch.argsort(factor.order).split(self.group_size)):
                self._keep(group, self.grid(work[own], self._importance[own], None))

    def of_columns(self, start: int, stop: int, pruned: Tensor | None = None) -> Grid:
        """Return the grids of columns that lie in one unit, [columns, rows]; they must be asked for in order.

        pruned: [columns, rows] bool of the linear, weights known to become zero, which a new group's grid need not
        cover.
        """
        if self._group_of is not None:
            groups = self._group_of[start:stop]
            return self._as_grid(self._scale[groups], self._zero[groups])
        group, first = divmod(start, self.group_size)
        if first == 0:
            # The group's weights now carry all updates of earlier columns.
            own = slice(start, start + self.group_size)
            weights = self._solved.updated(own) if start else self._solved.work[own]
            if pruned is not None:
                weights = weights.masked_fill(pruned[own], 0)
            self._keep(group, self.grid(weights, self._importance[own], self._ranges[group]))
        shape = stop - start, -1
        return self._as_grid(self._scale[group].expand(shape), self._zero[group].expand(shape))

    def to_own_order(self, own: Tensor) -> None:
        """Bring the codes from the order of solving back to the columns' own, of which ``own`` are the places."""
        self.codes = self.codes[own]

    def of_group(self, group: int) -> Grid:
        """Return the grid of a group, [rows]."""
        return self._as_grid(self._scale[group], self._zero[group])

    def set_scale(self, group: int, scale: Tensor) -> None:
        """Replace the scales of a group, [rows] float32, which the dtype of the weight holds exactly."""
        self._scale[group] = scale

    def as_they_stand(self, columns: slice) -> Grid:
        """Return the grids of columns in their own order, [columns, rows]."""
        groups = torch.arange(columns.start, columns.stop, device=self._scale.device) // self.group_size
        return self._as_grid(self._scale[groups], self._zero[groups])

    def scales(self) -> Tensor:
        """Return the scales, [rows, groups], in the dtype in which they are stored."""
        return self._scale.t().to(self._dtype).contiguous()

    def zeros(self) -> Tensor:
        """Return the zero points, [rows, groups] uint8."""
        return self._zero.t().to(torch.uint8).contiguous()

    def grid(self, weights: Tensor, importance: Tensor, before: tuple[Tensor, Tensor] | None) -> Grid:
        return self._solved.kernel.fit(weights, importance, before, self._method)

    def _keep(self, group: int, grid: Grid) -> None:
        self._scale[group], self._zero[group] = grid.scale, grid.zero

    def _as_grid(self, scale: Tensor, zero: Tensor) -> Grid:
        return Grid(scale, zero, 2**self._method.bits - 1, self._dtype)
