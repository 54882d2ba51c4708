"""A weight that leads the compressed model back to the dense one, before any method compresses it.

A linear of weight W is given x̃ by the blocks before it, which are compressed, where the dense model gives x. What is
missing of the dense model behind it is d = W x - W x̃, and where the output is added to the residual stream also what is
missing there: compressed linears can take back what others before them did to the stream. The step Δ of least
Σ ‖Δ x̃ - d‖² is D (H + λ)⁻¹ with the drift D = Σ d x̃ᵀ and H = Σ x̃ x̃ᵀ; the weight to be compressed is W + s Δ.

Without the stream and with s = 1 this is what GPTAQ (Li et al., arXiv 2504.02692) and Qronos (Zhang et al., arXiv
2505.11695) minimise; QEP (Arai and Ichikawa, arXiv 2504.09629) takes s < 1. A whole step answers only what is
predictable of d, at every linear again, so that signals shrink from block to block: half a step is better everywhere
we looked (docs/results/fit-to-dense.md).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.linalg import solve_triangular

from mbs_ray.methods.factor import HessianFactor, hessian_factor
from mbs_ray.methods.moments import Moment, Statistic, add_product
from mbs_ray.methods.precision import exact_float32

#: Fraction of the mean diagonal that is λ: tokens are few, and drifts mostly noise.
DAMPING = 0.1
#: How much of the step that fits held-out tokens best is taken.
SHARE = 0.5
#: Every so many segments one is held out to choose the strength by.
HELD_OUT = 8


@dataclass(eq=False)
class Drift:
    """Raw sum over calibration tokens of what is missing behind a linear, times its input: Σ d x̃ᵀ.

    `sum` is float32, [rows, columns].
    """

    sum: Tensor

    @classmethod
    def zeros(cls, rows: int, columns: int, device: torch.device | str = "cpu") -> "Drift":
        return cls(torch.zeros(rows, columns, dtype=torch.float32, device=device))

    @exact_float32()
    def add(self, missing: Tensor, inputs: Tensor) -> None:
        """Add tokens: what is missing, [..., rows], and inputs, [..., columns], of one float dtype; in place."""
        rows, columns = self.sum.shape
        add_product(self.sum, missing.reshape(-1, rows), inputs.reshape(-1, columns))


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Sums over the held-out part of the calibration tokens, which are in the whole sums too."""

    moment: Moment
    drifts: Mapping[str, Drift]
    """By the names of the linears."""


@exact_float32()
def strengths(
    weights: Mapping[str, Tensor], moment: Moment, drifts: Mapping[str, Drift], held: HeldOut, name: str = "linear"
) -> dict[str, float]:
    """Compute the strength of each linear of one input: :data:`SHARE` of what fits the held-out tokens best.

    The step is that of the other tokens. Its error Σ ‖s Δ x̃ - d‖² over those held out is a parabola of s, of which s
    is at most half the vertex: so it is never above the error of 0. weights: [rows, columns] each; moment: full.
    """
    others = Moment(Statistic.FULL, moment.columns, moment.tokens - held.moment.tokens, moment.sum - held.moment.sum)
    if others.tokens == 0 or held.moment.tokens == 0:
        return dict.fromkeys(weights, 0.0)
    factor = hessian_factor(others, DAMPING, name)
    found = {}
    for linear in weights:
        step = _step(drifts[linear].sum - held.drifts[linear].sum, factor)
        towards = float((step * held.drifts[linear].sum).sum(dtype=torch.float64))
        curvature = float((step @ held.moment.sum).mul_(step).sum(dtype=torch.float64))
        found[linear] = SHARE * min(1.0, max(0.0, towards / curvature)) if curvature > 0 else 0.0
    return found


@exact_float32()
def fitted(
    weights: Mapping[str, Tensor],
    moment: Moment,
    drifts: Mapping[str, Drift],
    strength: Mapping[str, float],
    name: str = "linear",
    damping: float = DAMPING,
) -> dict[str, Tensor]:
    """Return the weights of the linears of one input, W + s Δ, each in its dtype.

    weights: [rows, columns] each; moment: full, with tokens. A drift of zeros, or a strength of 0, leaves every bit.
    """
    factor = hessian_factor(moment, damping, name)
    return {
        linear: (weight.float() + strength[linear] * _step(drifts[linear].sum, factor)).to(weight.dtype)
        for linear, weight in weights.items()
    }


def _step(drift: Tensor, factor: HessianFactor) -> Tensor:
    """Compute drift (H + λ)⁻¹, [rows, columns] float32; dead columns, of which no drift comes, get zeros."""
    # In the order of a row x: x (S P Sᵀ) = drift.
    step = solve_triangular(factor.upper.t(), drift / factor.scale, upper=False, left=False, unitriangular=True)
    return solve_triangular(factor.upper, step.div_(factor.pivots), upper=True, left=False, unitriangular=True)
