"""The inverse factor of a Hessian, by recursive 2×2 blocks, in one buffer in addition to the moment."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from mbs_ray.errors import InputError
from mbs_ray.methods.field_checks import require_fraction, require_integer
from mbs_ray.methods.method_part import MethodPart
from mbs_ray.methods.moments import Moment, Statistic
from mbs_ray.methods.precision import exact_float32
from mbs_ray.methods.result import Compressed
from mbs_ray.methods.tensor_checks import check_tensors, is_finite, required_moment

FIRST_DAMPING = 1e-4
LAST_DAMPING = 1.0
LEAF = 256
PANEL = 512


@dataclass(frozen=True, eq=False)
class InverseFactor:
    """Factor U with UᵀU = (H / mean diagonal of H's live columns + damping)⁻¹; OBS does not depend on H's scale.

    A dead column (no token ever activated it) is decoupled, with the mean diagonal: it neither receives nor
    causes an update. One factor serves all linears that have the same input.
    """

    upper: Tensor
    """[columns, columns] float32, upper triangular, rows and columns in the order of solving."""
    dead: Tensor
    """[columns] bool, in the columns' own order."""
    damping: float
    """Fraction of the mean diagonal that was added."""
    scale: Tensor
    """Mean of the raw sums' diagonal over the live columns, a float32 scalar."""
    order: Tensor | None = None
    """[columns] int64: which column is solved when; None: as they stand."""


@dataclass(frozen=True, kw_only=True)
class Factored(MethodPart, ABC):
    """Base of the methods that solve with an inverse factor: their field and their preparation.

    damping: fraction of the Hessian's mean diagonal added to it, raised tenfold (up to 1) where it is too
    small for a factorization. refine: passes of coordinate descent after the solver, each of about its time.
    """

    damping: float = 0.01
    refine: int = 0

    def __post_init__(self) -> None:
        require_fraction(self.name, "damping", self.damping, one=True)
        require_integer(self.name, "refine", self.refine, 0, 100)

    def prepare(self, moment: Moment, name: str = "linear") -> InverseFactor:
        """Compute the factor of a full moment with tokens, which all linears with this input share."""
        return inverse_factor(required_moment(moment, self.name, Statistic.FULL, name), self.damping, name)

    def begin(
        self, weight: Tensor, moment: Moment | None, name: str, factor: InverseFactor | None
    ) -> tuple[Moment, InverseFactor, Tensor, Tensor]:
        """Check the arguments of :meth:`compress`; return the moment, its factor and two tensors for solve_columns.

        These are the weight in float32 and an empty tensor of its dtype, both fresh, [columns, rows] in the order
        of the factor. Raises InputError naming the linear.
        """
        self.check(*check_tensors(weight, moment, name), name)
        moment = required_moment(moment, self.name, Statistic.FULL, name)
        factor = factor or self.prepare(moment, name)
        work = _transposed(weight, factor.order)
        return moment, factor, work, torch.empty_like(work, dtype=weight.dtype)

    @abstractmethod
    def compress(
        self, weight: Tensor, moment: Moment | None, name: str = "linear", factor: InverseFactor | None = None
    ) -> Compressed:
        """Compress a weight [rows, columns] by a full moment; factor: the result of prepare(moment), to share it."""


def _transposed(weight: Tensor, order: Tensor | None) -> Tensor:
    """Copy a weight [rows, columns] to fresh contiguous float32 [columns, rows], columns in this order."""
    # Not weight.t().float().contiguous(): for a single row or column that is the caller's own memory.
    columns = weight.t() if order is None else weight.t()[order]
    return torch.empty(columns.shape, dtype=torch.float32, device=weight.device).copy_(columns)


@exact_float32()
def inverse_factor(moment: Moment, damping: float, name: str, *, by_activation: bool = False) -> InverseFactor:
    """Factor the inverse Hessian, raising the damping tenfold, up to 1, for as long as that fails.

    by_activation: solve the columns in descending order of their mean squared input (GPTQ's activation
    order) instead of as they stand. Holds at most two float32 buffers of columns² in addition to the moment.
    Raises InputError if even damping 1 fails.
    """
    mean, dead = moment.live_mean(), moment.dead()
    order = torch.argsort(moment.diagonal(), descending=True, stable=True) if by_activation else None
    while True:
        upper = _factor(moment.sum, mean, dead, damping, order)
        if upper is not None:
            return InverseFactor(upper, dead, damping, mean, order)
        if damping >= LAST_DAMPING:
            raise InputError(
                f"{name}: the Hessian cannot be factorized, even with damping {LAST_DAMPING:g} "
                f"({moment.tokens} tokens for {moment.columns} columns); "
                "calibrate on more segments and look for overflowing activations"
            )
        damping = min(max(10 * damping, FIRST_DAMPING), LAST_DAMPING)


def _factor(sums: Tensor, mean: Tensor, dead: Tensor, damping: float, order: Tensor | None) -> Tensor | None:
    if order is None:
        hessian = sums / mean
    else:
        hessian = sums[order][:, order].div_(mean)
        dead = dead[order]
    hessian.diagonal().add_(dead).add_(damping)
    return hessian if not _invert(hessian) and is_finite(hessian) else None


def _invert(hessian: Tensor) -> int:
    """Replace H = R Rᵀ, R upper triangular, by R⁻¹; only the upper triangle of H is read.

    With blocks, R₂₂R₂₂ᵀ = H₂₂, R₁₂ = H₁₂R₂₂⁻ᵀ, R₁₁R₁₁ᵀ = H₁₁ - R₁₂R₁₂ᵀ, and R⁻¹ has -R₁₁⁻¹R₁₂R₂₂⁻¹ beside
    the inverses of the diagonal blocks, so only inverses are ever needed: 2/3 columns³ operations, all but the
    leaves' in large products. Returns how many leaves were not positive definite, after one synchronisation.
    """
    failures = torch.zeros((), dtype=torch.int64, device=hessian.device)
    _invert_block(hessian, failures)
    return int(failures)


def _invert_block(hessian: Tensor, failures: Tensor) -> None:
    columns = len(hessian)
    if columns <= LEAF:
        _invert_leaf(hessian, failures)
        return
    # In one buffer, so the order counts: invert the last block, turn the corner into R₁₂ and the first block into its
    # Schur complement, invert that, and only then turn the corner into its part of the inverse.
    half = (columns // 2 + LEAF - 1) // LEAF * LEAF
    first, corner, last = hessian[:half, :half], hessian[:half, half:], hessian[half:, half:]
    _invert_block(last, failures)
    _times_transposed_upper(corner, last)
    _subtract_square(first, corner)
    _invert_block(first, failures)
    _times_upper(corner, last)
    _upper_times(first, corner)
    corner.neg_()
    hessian[half:, :half] = 0


def _invert_leaf(hessian: Tensor, failures: Tensor) -> None:
    # With J the reversal of order, J H J = L Lᵀ gives H = (J L J)(J L J)ᵀ with J L J upper triangular.
    symmetric = hessian.triu() + hessian.triu(1).t()
    lower, failure = torch.linalg.cholesky_ex(symmetric.flip(0, 1))
    identity = torch.eye(len(lower), dtype=lower.dtype, device=lower.device)
    hessian.copy_(torch.linalg.solve_triangular(lower, identity, upper=False).flip(0, 1))
    failures += failure != 0


# Products with a triangle, panel by panel and in place: the panels are ordered so that each reads only what is
# not yet overwritten, and the half of the triangle that is zero is never multiplied.


def _panels(size: int) -> list[tuple[int, int]]:
    return [(start, min(start + PANEL, size)) for start in range(0, size, PANEL)]


def _times_transposed_upper(matrix: Tensor, upper: Tensor) -> None:
    """Compute matrix := matrix @ upperᵀ."""
    for start, stop in _panels(len(upper)):
        matrix[:, start:stop] = matrix[:, start:] @ upper[start:stop, start:].t()


def _times_upper(matrix: Tensor, upper: Tensor) -> None:
    """Compute matrix := matrix @ upper."""
    for start, stop in reversed(_panels(len(upper))):
        matrix[:, start:stop] = matrix[:, :stop] @ upper[:stop, start:stop]


def _upper_times(upper: Tensor, matrix: Tensor) -> None:
    """Compute matrix := upper @ matrix."""
    for start, stop in _panels(len(upper)):
        matrix[start:stop] = upper[start:stop, start:] @ matrix[start:]


def _subtract_square(symmetric: Tensor, matrix: Tensor) -> None:
    """Compute symmetric := symmetric - matrix @ matrixᵀ, in the upper triangle."""
    for start, stop in _panels(len(symmetric)):
        symmetric[start:stop, start:].addmm_(matrix[start:stop], matrix[start:].t(), alpha=-1)
