"""The factor of the Hessian and its damping."""

import pytest
import torch
from method_cases import damped64, draw, full_moment

from mbs_ray.errors import InputError
from mbs_ray.methods import GPTQ, Moment, SparseGPT, Statistic
from mbs_ray.methods.factor import HessianFactor, hessian_factor


def given_sum(rows: list[list[float]], tokens: int = 7) -> Moment:
    return Moment(Statistic.FULL, len(rows), tokens, torch.tensor(rows))


def product64(factor: HessianFactor) -> torch.Tensor:
    """S P Sᵀ in float64, in the order of solving."""
    upper = factor.upper.double().triu(1) + torch.eye(len(factor.upper)).double()
    return upper * factor.pivots.double() @ upper.T


@pytest.mark.parametrize("by_activation", [False, True])
@pytest.mark.parametrize("columns", [1, 2, 17, 64, 257, 700, 1100])
def test_the_factors_multiply_to_the_damped_hessian(columns: int, by_activation: bool) -> None:
    _, inputs = draw(1, columns)
    factor = hessian_factor(full_moment(inputs), 0.01, "linear", by_activation=by_activation)
    hessian = damped64(inputs, 0.01)
    hessian /= hessian.diagonal().mean() / 1.01
    if by_activation:
        assert factor.order is not None
        assert torch.equal(
            hessian.diagonal()[factor.order].float().sort(descending=True).indices, torch.arange(columns)
        )
        hessian = hessian[factor.order][:, factor.order]
    inverse = torch.linalg.inv(product64(factor))
    torch.testing.assert_close(inverse @ hessian, torch.eye(columns).double(), rtol=0, atol=1e-4)
    assert factor.damping == 0.01


@pytest.mark.parametrize("exponent", [-30, 30])
def test_the_factor_does_not_depend_on_the_scale_of_the_activations(exponent: int) -> None:
    _, inputs = draw(1, 12)
    moment = full_moment(inputs)
    scaled = Moment(Statistic.FULL, 12, moment.tokens, moment.sum * 2.0**exponent)
    usual, other = (hessian_factor(m, 0.01, "linear") for m in (moment, scaled))
    assert torch.equal(usual.upper.triu(1), other.upper.triu(1)) and torch.equal(usual.pivots, other.pivots)


def test_a_pivot_is_what_an_error_costs_once_all_later_columns_compensate() -> None:
    _, inputs = draw(1, 10)
    factor = hessian_factor(full_moment(inputs), 0.05, "linear")
    hessian = damped64(inputs, 0.05)
    hessian /= hessian.diagonal().mean() / 1.05
    for j in range(10):
        inverse = torch.linalg.inv(hessian[j:, j:])
        assert float(factor.pivots[j]) == pytest.approx(1 / float(inverse[0, 0]), rel=1e-4)


def test_dead_columns_stand_alone() -> None:
    _, inputs = draw(1, 9)
    inputs[:, [0, 4]] = 0
    live = [1, 2, 3, 5, 6, 7, 8]
    factor = hessian_factor(full_moment(inputs), 0.01, "linear")
    alone = hessian_factor(full_moment(inputs[:, live]), 0.01, "linear")
    assert factor.dead.nonzero().flatten().tolist() == [0, 4]
    torch.testing.assert_close(factor.upper[live][:, live].triu(1), alone.upper.triu(1))
    torch.testing.assert_close(factor.pivots[live], alone.pivots)
    for dead in (0, 4):
        assert factor.upper.triu(1)[dead].count_nonzero() == factor.upper.triu(1)[:, dead].count_nonzero() == 0
        torch.testing.assert_close(float(factor.pivots[dead]), 1.01)
        assert factor.costs()[dead] == 0


def test_costs_of_dead_columns_are_found_in_the_order_of_solving() -> None:
    _, inputs = draw(1, 9)
    inputs[:, [0, 4]] = 0
    factor = hessian_factor(full_moment(inputs), 0.01, "linear", by_activation=True)
    assert torch.equal(factor.costs() == 0, torch.arange(9) >= 7)


def test_a_layer_of_dead_columns_has_the_identity() -> None:
    factor = hessian_factor(given_sum([[0.0] * 3] * 3), 0.0, "linear")
    assert torch.equal(product64(factor), torch.eye(3).double())
    assert torch.equal(factor.costs(), torch.zeros(3))


def test_damping_is_raised_tenfold_until_the_factorization_succeeds() -> None:
    # Eigenvalues of the normalised matrix: 2.05 and -0.05.
    assert hessian_factor(given_sum([[1, 1.05], [1.05, 1]]), 0.01, "linear").damping == pytest.approx(0.1)
    assert hessian_factor(given_sum([[1, 1.5], [1.5, 1]]), 0.03, "linear").damping == 1.0
    assert hessian_factor(given_sum([[1.0, 1.0], [1.0, 1.0]]), 0.0, "linear").damping == pytest.approx(1e-4)


@pytest.mark.parametrize("method", [SparseGPT(), GPTQ()])
def test_the_damping_that_was_needed_is_reported(method: SparseGPT | GPTQ) -> None:
    moment = given_sum([[1, 1.05], [1.05, 1]])
    assert method.compress(torch.tensor([[1.0, 2.0]]), moment).damping == pytest.approx(0.1)
    _, inputs = draw(1, 2)
    assert method.compress(torch.tensor([[1.0, 2.0]]), full_moment(inputs)).damping == 0.01


def test_a_hopeless_hessian_is_an_error_that_says_what_to_change() -> None:
    moment = given_sum([[1.0, 3.0], [3.0, 1.0]], tokens=5)
    with pytest.raises(InputError, match=r"h\.3\.dense: .*damping 1 \(5 tokens for 2 columns\); calibrate"):
        SparseGPT().compress(torch.ones(1, 2), moment, "h.3.dense")
