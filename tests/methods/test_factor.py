"""The inverse factor and its damping."""

import pytest
import torch
from method_cases import damped64, draw, full_moment

from mbs_ray.errors import InputError
from mbs_ray.methods import GPTQ, Moment, SparseGPT, Statistic
from mbs_ray.methods.factor import inverse_factor


def given_sum(rows: list[list[float]], tokens: int = 7) -> Moment:
    return Moment(Statistic.FULL, len(rows), tokens, torch.tensor(rows))


@pytest.mark.parametrize("columns", [1, 2, 17, 64, 257, 700, 1100])
def test_the_factor_squares_to_the_inverse_of_the_damped_hessian(columns: int) -> None:
    _, inputs = draw(1, columns)
    factor = inverse_factor(full_moment(inputs), 0.01, "linear")
    hessian = damped64(inputs, 0.01)
    hessian /= (hessian.diagonal().mean()) / 1.01
    upper = factor.upper.double()
    assert torch.equal(factor.upper, factor.upper.triu())
    torch.testing.assert_close(upper.T @ upper @ hessian, torch.eye(columns).double(), rtol=0, atol=1e-4)
    assert factor.damping == 0.01


@pytest.mark.parametrize("exponent", [-30, 30])
def test_the_factor_does_not_depend_on_the_scale_of_the_activations(exponent: int) -> None:
    _, inputs = draw(1, 12)
    moment = full_moment(inputs)
    scaled = Moment(Statistic.FULL, 12, moment.tokens, moment.sum * 2.0**exponent)
    usual, other = (inverse_factor(m, 0.01, "linear").upper for m in (moment, scaled))
    assert torch.equal(usual, other)


def test_trailing_blocks_of_the_factor_invert_trailing_hessians() -> None:
    _, inputs = draw(1, 10)
    upper = inverse_factor(full_moment(inputs), 0.05, "linear").upper.double()
    hessian = damped64(inputs, 0.05)
    hessian /= hessian.diagonal().mean() / 1.05
    for j in range(10):
        inverse = torch.linalg.inv(hessian[j:, j:])
        torch.testing.assert_close(upper[j, j] * upper[j, j:], inverse[0], rtol=1e-4, atol=1e-5)


def test_dead_columns_stand_alone() -> None:
    _, inputs = draw(1, 9)
    inputs[:, [0, 4]] = 0
    live = [1, 2, 3, 5, 6, 7, 8]
    factor = inverse_factor(full_moment(inputs), 0.01, "linear")
    alone = inverse_factor(full_moment(inputs[:, live]), 0.01, "linear")
    assert factor.dead.nonzero().flatten().tolist() == [0, 4]
    torch.testing.assert_close(factor.upper[live][:, live], alone.upper)
    for dead in (0, 4):
        assert factor.upper[dead].count_nonzero() == factor.upper[:, dead].count_nonzero() == 1
        torch.testing.assert_close(float(factor.upper[dead, dead]), 1.01**-0.5)


def test_a_layer_of_dead_columns_has_the_identity() -> None:
    factor = inverse_factor(given_sum([[0.0] * 3] * 3), 0.0, "linear")
    assert torch.equal(factor.upper, torch.eye(3))


def test_damping_is_raised_tenfold_until_the_factorization_succeeds() -> None:
    # Eigenvalues of the normalised matrix: 2.05 and -0.05.
    assert inverse_factor(given_sum([[1, 1.05], [1.05, 1]]), 0.01, "linear").damping == pytest.approx(0.1)
    assert inverse_factor(given_sum([[1, 1.5], [1.5, 1]]), 0.03, "linear").damping == 1.0
    assert inverse_factor(given_sum([[1.0, 1.0], [1.0, 1.0]]), 0.0, "linear").damping == pytest.approx(1e-4)


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
