"""The triangular factor of a damped Hessian, by panels of columns, in one buffer in addition to the moment."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mbs_ray.errors import InputError
from mbs_ray.methods.moments import Moment
from mbs_ray.methods.precision import exact_float32
from mbs_ray.methods.tensor_checks import is_finite

FIRST_DAMPING = 1e-4
LAST_DAMPING = 1.0
#: Columns that one product with all later ones brings up to date, and of these those that are factored at once.
PANEL, LEAF = 512, 256
#: Columns of a panel that are gathered at once where the columns have an order of their own.
GATHERED = 128


@dataclass(frozen=True, eq=False)
class HessianFactor:
    """Factors S, P with S P Sᵀ = H / mean diagonal of H's live columns + damping; OBS does not depend on H's scale.

    A dead column (no token ever activated it) is decoupled, with the mean diagonal: it neither receives nor
    causes an update. One factor serves all linears that have the same input.
    """

    upper: Tensor
    """[columns, columns] float32, rows and columns in the order of solving: S above the diagonal. The diagonal of S
    is 1 and not stored; what stands there and below has no meaning."""
    pivots: Tensor
    """[columns] float32, the diagonal of P: what the square of a column's error costs once all later ones have
    compensated for it, 1 / [H_j⁻¹]_00 for H_j without the columns before j."""
    dead: Tensor
    """[columns] bool, in the columns' own order."""
    damping: float
    """Fraction of the mean diagonal that was added."""
    scale: Tensor
    """Mean of the raw sums' diagonal over the live columns, a float32 scalar."""
    order: Tensor | None = None
    """[columns] int64: which column is solved when; None: as they stand."""

    def dead_in_order(self) -> Tensor:
        """Return which columns are dead, [columns] bool in the order of solving."""
        return self.dead if self.order is None else self.dead[self.order]

    def costs(self) -> Tensor:
        """Return the pivots, in the order of solving, with 0 for dead columns: no token sees their error."""
        return self.pivots.masked_fill(self.dead_in_order(), 0)


@exact_float32()
def hessian_factor(moment: Moment, damping: float, name: str, *, by_activation: bool = False) -> HessianFactor:
    """Factor the damped Hessian, raising the damping tenfold, up to 1, for as long as that fails.

    by_activation: solve the columns in descending order of their mean squared input (GPTQ's activation
    order) instead of as they stand. Holds one float32 buffer of columns² in addition to the moment, and a panel.
    Raises InputError if even damping 1 fails.
    """
    mean, dead = moment.live_mean(), moment.dead()
    order = torch.argsort(moment.diagonal(), descending=True, stable=True) if by_activation else None
    added = (dead if order is None else dead[order]).to(torch.float32)
    upper, pivots = torch.empty_like(moment.sum), torch.empty_like(added)
    while True:
        if _factor(_Panels(moment.sum, mean, order), added + damping, upper, pivots):
            return HessianFactor(upper, pivots, dead, damping, mean, order)
        if damping >= LAST_DAMPING:
            raise InputError(
                f"{name}: the Hessian cannot be factorized, even with damping {LAST_DAMPING:g} "
                f"({moment.tokens} tokens for {moment.columns} columns); "
                "calibrate on more segments and look for overflowing activations"
            )
        damping = min(max(10 * damping, FIRST_DAMPING), LAST_DAMPING)


@dataclass(frozen=True, eq=False)
class _Panels:
    """A Hessian without damping, read a panel of columns at a time."""

    sums: Tensor
    mean: Tensor
    order: Tensor | None

    def copy_to(self, panel: Tensor, columns: slice) -> None:
        """Fill a panel [rows, columns] with the first rows of these columns, in the order of solving."""
        rows = len(panel)
        if self.order is None:
            torch.div(self.sums[:rows, columns], self.mean, out=panel)
            return
        for own, order in zip(panel.split(GATHERED, 1), self.order[columns].split(GATHERED), strict=True):
            # Sums are symmetric, and whole rows are gathered faster than columns.
            own.copy_(self.sums[order][:, self.order[:rows]].t())
        panel.div_(self.mean)


def _factor(hessian: _Panels, added: Tensor, upper: Tensor, pivots: Tensor) -> bool:
    """Factor H = S P Sᵀ into the part of `upper` above its diagonal and `pivots`; return whether H was definite.

    With the last columns first, a panel less its products with all later ones is S₁P of its own columns: 1/3
    columns³ operations, nearly all in large products. `added`: [columns], to the diagonal of H.
    """
    failures = torch.zeros((), dtype=torch.int64, device=upper.device)
    for start, stop in reversed(_parts(len(upper), PANEL)):
        panel = upper[:stop, start:stop]
        hessian.copy_to(panel, slice(start, stop))
        panel[start:].diagonal().add_(added[start:stop])
        _subtract_later(panel, upper[:stop, stop:], upper[start:stop, stop:], pivots[stop:])
        for first, last in reversed(_parts(stop - start, LEAF)):
            leaf = panel[: start + last, first:last]
            rest = panel[:, last:]
            _subtract_later(leaf, rest[: start + last], rest[start + first : start + last], pivots[start + last : stop])
            failures += _factor_leaf(leaf, pivots[start + first : start + last])
    # A number that is not finite makes the pivots of all rows above it that meet it so.
    return not int(failures) and is_finite(pivots)


def _parts(size: int, most: int) -> list[tuple[int, int]]:
    return [(start, min(start + most, size)) for start in range(0, size, most)]


def _subtract_later(panel: Tensor, later: Tensor, own: Tensor, pivots: Tensor) -> None:
    """Compute panel := panel - later P ownᵀ, with the part of S right of the panel and that of the panel's own rows."""
    if len(pivots):
        panel.addmm_(later, (own * pivots).t(), alpha=-1)


def _factor_leaf(panel: Tensor, pivots: Tensor) -> Tensor:
    """Turn columns that no later one touches any more, S P Sᵀ with their own S below, into S; set their pivots.

    Returns whether they were not positive definite.
    """
    above, own = panel.split([len(panel) - len(pivots), len(pivots)])
    # With J the reversal of order, J H J = L Lᵀ gives H = R Rᵀ with R = J L J upper triangular, and S = R / diag R.
    lower, failure = torch.linalg.cholesky_ex(own.flip(0, 1))
    roots = lower.diagonal()
    identity = torch.eye(len(lower), dtype=lower.dtype, device=lower.device)
    inverse = torch.linalg.solve_triangular(lower, identity, upper=False)
    pivots.copy_(roots.square().flip(0))
    above.copy_(above @ (inverse.t() / roots).flip(0, 1))
    own.copy_((lower / roots).flip(0, 1))
    return failure != 0
