"""Optimal Brain Surgeon, cheapest weight first: every row settles its weights in an order of its own, in float64.

Giving weight p of a row its final value, e below the present one, costs e² / [H⁻¹]_pp. The best change of the
weights that are still open is -e / [H⁻¹]_pp times column p of H⁻¹, and H⁻¹ then becomes H⁻¹ - u uᵀ, where u is that
column over the root of [H⁻¹]_pp (Frantar, Singh & Alistarh, Optimal Brain Compression, arXiv 2208.11580, section 4,
lemma 1). The vectors u of a row are the columns of a Cholesky factor of H⁻¹ whose pivots the row chooses itself: so
the rows share the initial H⁻¹ and each keeps its vectors u instead of an H⁻¹ of its own.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mbs_ray.errors import InputError
from mbs_ray.methods.factor import FIRST_DAMPING, LAST_DAMPING
from mbs_ray.methods.field_checks import require_fraction
from mbs_ray.methods.method_part import MethodPart
from mbs_ray.methods.moments import Moment, Statistic
from mbs_ray.methods.tensor_checks import check_tensors, required_moment

MOST_COLUMNS = 1024
BUFFER_BYTES = 2**27
ROUNDING = torch.finfo(torch.float32).eps


def _check_columns(method: str, instead: str, columns: int, name: str) -> None:
    """Raise InputError, naming the linear, if it is too wide for time and memory that grow with columns³."""
    if columns > MOST_COLUMNS:
        raise InputError(
            f"{name}: {method} takes linears of at most {MOST_COLUMNS} columns, this one has {columns}; "
            f"use {instead} instead"
        )


@dataclass(frozen=True, eq=False)
class DampedHessian:
    """H / mean diagonal of its live columns + damping, and its inverse, [columns, columns] float64.

    A dead column (no token ever activated it) is decoupled, with the mean diagonal, as in a HessianFactor.
    """

    matrix: Tensor
    inverse: Tensor
    dead: Tensor
    """[columns] bool."""
    damping: float
    """Fraction of the mean diagonal that was added."""


def _damped_hessian(moment: Moment, damping: float, name: str) -> DampedHessian:
    """Damp and invert the Hessian, raising the damping tenfold, up to 1, for as long as that fails.

    Raises InputError, naming the linear, if even damping 1 fails.
    """
    dead = moment.dead()
    plain = moment.sum.double() / moment.live_mean().double()
    plain.diagonal().add_(dead)
    while True:
        matrix = plain.clone()
        matrix.diagonal().add_(damping)
        inverse = _inverse(matrix)
        if inverse is not None:
            return DampedHessian(matrix, inverse, dead, damping)
        if damping >= LAST_DAMPING:
            raise InputError(
                f"{name}: the Hessian cannot be inverted, even with damping {LAST_DAMPING:g} "
                f"({moment.tokens} tokens for {moment.columns} columns); "
                "calibrate on more segments and look for overflowing activations"
            )
        damping = min(max(10 * damping, FIRST_DAMPING), LAST_DAMPING)


def _inverse(matrix: Tensor) -> Tensor | None:
    lower, failure = torch.linalg.cholesky_ex(matrix)
    if int(failure):
        return None
    inverse = torch.cholesky_inverse(lower)
    # The other columns leave a share 1 / (H_jj [H⁻¹]_jj) of column j unexplained. A share below the rounding of
    # the float32 sums is noise; above it, every part of H is safe to factorize in float64.
    share = 1 / (matrix.diagonal() * inverse.diagonal())
    return inverse if bool((share > ROUNDING).all()) else None


@dataclass(frozen=True, kw_only=True)
class Greedy(MethodPart):
    """Base of the methods that settle weights one by one; name it before other bases, whose checks it calls.

    damping: fraction of the Hessian's mean diagonal added to it, raised tenfold (up to 1) where it is too
    small for an inverse.
    """

    statistic: ClassVar[Statistic] = Statistic.FULL
    for_wide_linears: ClassVar[str]
    """The method for linears that are too wide for this one."""

    damping: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        require_fraction(self.name, "damping", self.damping, one=True)

    def check(self, rows: int, columns: int, name: str) -> None:
        """Raise InputError if a linear of this shape, called `name`, cannot take the other fields or is too wide."""
        super().check(rows, columns, name)
        _check_columns(self.name, self.for_wide_linears, columns, name)

    def begin(self, weight: Tensor, moment: Moment | None, name: str) -> tuple[Moment, DampedHessian]:
        """Check the arguments of `compress`; return the moment and its Hessian. Raises InputError naming the linear."""
        self.check(*check_tensors(weight, moment, name), name)
        moment = required_moment(moment, self.name, self.statistic, name)
        return moment, _damped_hessian(moment, self.damping, name)


def rows_at_once(columns: int) -> int:
    """Return how many rows fill BUFFER_BYTES as [rows, columns, columns] float64; at most two such are ever alive."""
    return max(1, BUFFER_BYTES // (8 * columns * columns))


Look = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(weights, open) -> errors [rows, columns], present minus final value, and candidates [rows, columns] bool."""


def settle(weights: Tensor, taken: Tensor, inverse: Tensor, steps: int, look: Look) -> tuple[Tensor, Tensor]:
    """Settle `steps` of every row's open weights, the cheapest candidate first (the first of equals).

    weights: [rows, columns] float64, updated in place. taken: [columns] bool, not open from the start.
    inverse: [columns, columns] float64. look is called before every step and must give every row a candidate,
    and only open ones. Returns the columns in the order of settling and the cost of each, both [rows, steps].
    """
    rows, columns = weights.shape
    open_ = (~taken).repeat(rows, 1)
    pivots = inverse.diagonal().repeat(rows, 1)
    used = weights.new_empty(rows, steps, columns)
    order = torch.empty(rows, steps, dtype=torch.int64, device=weights.device)
    costs = weights.new_empty(rows, steps)
    for step in range(steps):
        errors, candidates = look(weights, open_)
        cost = (errors.square() / pivots).masked_fill_(~candidates, math.inf)
        chosen = cost.argmin(1, keepdim=True)
        order[:, step], costs[:, step] = chosen[:, 0], cost.gather(1, chosen)[:, 0]

        # Column p of the row's present H⁻¹ is the initial column less u_p u for every vector u the row has kept;
        # over the root of its pivot it is the next u. The open weights move along it, settling weight p, and every
        # pivot [H⁻¹]_jj loses u_j².
        before = used[:, :step]
        shares = before.gather(2, chosen[:, None].expand(-1, step, -1)).transpose(1, 2)
        root = pivots.gather(1, chosen).sqrt_()
        column = inverse[chosen[:, 0]].sub_((shares @ before)[:, 0]).div_(root)
        used[:, step] = column
        weights.addcmul_(column, errors.gather(1, chosen) / root, value=-1)
        pivots.addcmul_(column, column, value=-1)
        open_.scatter_(1, chosen, False)
    return order, costs


def reconstructed(weights: Tensor, pruned: Tensor, hessian: Tensor) -> Tensor:
    """Compute the weights of least loss that are zero where `pruned`: OBS's result, without its rounding errors.

    weights [rows, columns], hessian [columns, columns], both float64. With kept columns S and pruned ones P,
    a row changes by H_SS⁻¹ H_SP w_P: one system per row, in which a pruned column is decoupled.
    """
    kept = ~pruned
    systems = hessian * (kept[:, :, None] & kept[:, None, :])
    systems.diagonal(dim1=1, dim2=2).add_(pruned)
    pull = (weights * pruned @ hessian).mul_(kept)
    change = torch.cholesky_solve(pull[:, :, None], torch.linalg.cholesky(systems))[:, :, 0]
    return (weights + change).masked_fill_(pruned, 0)
