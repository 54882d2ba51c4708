"""Optimal Brain Compression: exact greedy solvers, slow, for small linears; a yardstick for the other methods."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mbs_ray.methods.greedy import DampedHessian, Greedy, reconstructed, rows_at_once, settle
from mbs_ray.methods.grid import Grid, Quantization
from mbs_ray.methods.moments import Moment
from mbs_ray.methods.precision import exact_float32
from mbs_ray.methods.result import Compressed, measured
from mbs_ray.methods.sparsity import Pruning, count_zeros, lowest_of_all


@dataclass(frozen=True, kw_only=True)
class OBC(Greedy, Pruning):
    """Exact greedy pruning: Frantar, Singh & Alistarh, OBC, arXiv 2208.11580, section 4 (ExactOBS).

    Every row prunes its weight of least w² / [H⁻¹]_pp, updates all others, and repeats. Unstructured: every row
    is followed to its last weight; then exactly round(sparsity * rows * columns) weights of the linear are pruned,
    always in the row whose next weight costs least (ties by row). n:m: a column is a candidate until its group has
    lost m - n. The survivors are the exact optimum for the mask, solved in float64. Dead columns are treated
    as in SparseGPT: pruned by magnitude at the same ratio, the live ones among themselves (in an n:m group,
    which has no room for two ratios, they count as average columns).
    """

    name: ClassVar[str] = "obc"
    scopes: ClassVar[tuple[str, ...]] = ("linear",)
    for_wide_linears: ClassVar[str] = "sparsegpt"

    @exact_float32()
    def compress(self, weight: Tensor, moment: Moment | None, name: str = "linear") -> Compressed:
        """Prune [rows, columns] by a full moment; survivors are updated and rounded to the weight's dtype."""
        moment, hessian = self.begin(weight, moment, name)
        original = weight.double()
        kept = self.kept_of_group
        if kept is None:
            pruned = _cheapest_of_all(original, hessian, self.sparsity)
        else:
            pruned = _cheapest_of_groups(original, hessian, *kept)
        at_once = rows_at_once(weight.shape[1])
        parts = zip(original.split(at_once), pruned.split(at_once), strict=True)
        written = torch.cat([reconstructed(*part, hessian.matrix) for part in parts]).to(weight.dtype)
        return measured(weight, written, moment, name, damping=hessian.damping)


def _cheapest_of_all(original: Tensor, hessian: DampedHessian, sparsity: float) -> Tensor:
    dead, (rows, columns) = hessian.dead, original.shape
    live_columns = columns - int(dead.sum())
    parts = [
        settle(part.clone(), dead, hessian.inverse, live_columns, lambda weights, open_: (weights, open_))
        for part in original.split(rows_at_once(columns))
    ]
    order, costs = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    # The greedy over the whole linear, from rows followed one by one: a weight waits for those before it in its
    # row, so it is due at the largest cost among them and its own, and the lowest dues of all rows are pruned first.
    due = costs.cummax(1).values
    of_dead = count_zeros(sparsity, rows * (columns - live_columns))
    chosen = lowest_of_all(due, count_zeros(sparsity, rows * columns) - of_dead)
    pruned = torch.zeros_like(original, dtype=torch.bool).scatter_(1, order, chosen)
    pruned[:, dead] = lowest_of_all(original[:, dead].abs(), of_dead)
    return pruned


def _cheapest_of_groups(original: Tensor, hessian: DampedHessian, keep: int, group: int) -> Tensor:
    def look(weights: Tensor, open_: Tensor) -> tuple[Tensor, Tensor]:
        # The open weights of a group are candidates while it has more of them than it keeps.
        groups = open_.unflatten(1, (-1, group))
        return weights, (groups & (groups.sum(2, keepdim=True) > keep)).flatten(1)

    columns = original.shape[1]
    none = torch.zeros_like(hessian.dead)
    steps = columns // group * (group - keep)
    parts = original.split(rows_at_once(columns))
    order = torch.cat([settle(part.clone(), none, hessian.inverse, steps, look)[0] for part in parts])
    return torch.zeros_like(original, dtype=torch.bool).scatter_(1, order, True)


@dataclass(frozen=True, kw_only=True)
class OBQ(Greedy, Quantization):
    """Exact greedy quantization: Frantar, Singh & Alistarh, OBC, arXiv 2208.11580, section 5 (OBQ).

    Every grid covers its group's original weights. Every row rounds its weight of least
    (w - quant(w))² / [H⁻¹]_pp, updates all others, and repeats; but a weight that updates have moved more
    than half a step beyond its grid is rounded at once, before others move it further. Open weights compensate for
    the difference to the value as written, rounded to the weight's dtype. Dead columns are rounded to nearest.

    The order is the paper's. It leaves the most expensive weights for the end, when few are left to compensate for
    them: better than GPTQ's where the inputs are similar in size (behind a norm), worse where they differ much.
    """

    name: ClassVar[str] = "obq"
    for_wide_linears: ClassVar[str] = "gptq"

    @exact_float32()
    def compress(self, weight: Tensor, moment: Moment | None, name: str = "linear") -> Compressed:
        """Quantize [rows, columns] by a full moment."""
        moment, hessian = self.begin(weight, moment, name)
        columns = weight.shape[1]
        group_size = self.group_size or columns
        written, codes, scales, zeros = [], [], [], []
        for part in weight.split(rows_at_once(columns)):
            grid = Grid.of(part.float().unflatten(1, (-1, group_size)), 2, self, weight.dtype)
            codes.append(_cheapest_codes(part.double(), hessian, grid, group_size))
            written.append(grid.values(codes[-1]).flatten(1).to(weight.dtype))
            scales.append(grid.scale.squeeze(2).to(weight.dtype))
            zeros.append(grid.zero.squeeze(2).to(torch.uint8))
        return measured(
            weight,
            torch.cat(written),
            moment,
            name,
            damping=hessian.damping,
            codes=torch.cat(codes).flatten(1).to(torch.uint8),
            scales=torch.cat(scales),
            zeros=torch.cat(zeros),
            group_size=group_size,
        )


def _cheapest_codes(weights: Tensor, hessian: DampedHessian, grid: Grid, group_size: int) -> Tensor:
    """Quantize float64 weights [rows, columns], which serve as scratch, to codes [rows, groups, group_size] float32."""
    codes = torch.zeros_like(weights, dtype=torch.float32).unflatten(1, (-1, group_size))

    def look(weights: Tensor, open_: Tensor) -> tuple[Tensor, Tensor]:
        # Settled weights keep their codes; open ones are rounded from where updates have moved them by now.
        grouped, open_groups = weights.unflatten(1, (-1, group_size)), open_.unflatten(1, (-1, group_size))
        codes.copy_(torch.where(open_groups, grid.codes(grouped), codes))
        errors = (grouped - grid.values(codes)).flatten(1)
        outliers = ((grouped / grid.scale + grid.zero - codes).abs() > 0.5).flatten(1) & open_
        return errors, torch.where(outliers.any(1, keepdim=True), outliers, open_)

    settle(weights, torch.zeros_like(hessian.dead), hessian.inverse, weights.shape[1], look)
    return codes
