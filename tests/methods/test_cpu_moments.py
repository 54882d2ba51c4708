"""Second moments on a CPU's matrix units: as exact as in float32, for every shape, and beside torch's own products."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mbs_ray.methods import cpu_moments
from mbs_ray.methods.cpu_moments import add_squares, has_matrix_units
from tests.support.examples import examples

pytestmark = pytest.mark.skipif(not has_matrix_units(), reason="this CPU has no matrix units (AMX), or there is no g++")

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
#: Half a unit in the last place of a float32.
ROUNDING = 2**-24


@pytest.fixture(autouse=True)
def as_many_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def normal(tokens: int, columns: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    scales = torch.randn(columns, generator=generator).exp()
    return (torch.randn(tokens, columns, generator=generator) * scales).to(dtype)


def squares(tokens: Tensor, before: Tensor | None = None) -> Tensor:
    """The lower triangle of the sum."""
    columns = tokens.shape[1]
    sum_ = torch.zeros(columns, columns) if before is None else before.clone()
    assert add_squares(sum_, tokens)
    return sum_.tril()


@pytest.mark.parametrize("dtype", DTYPES)
@examples(60)
@given(tokens=st.integers(0, 100), columns=st.integers(1, 130), seed=st.integers(0, 5))
def test_any_shape_is_summed_as_in_float32(dtype: torch.dtype, tokens: int, columns: int, seed: int) -> None:
    inputs = normal(tokens, columns, dtype, seed)
    before = normal(columns, columns, seed=seed + 1)
    exact = inputs.double()
    error = (squares(inputs, before).double() - (before.double() + exact.T @ exact).tril()).abs()
    # Every one of at most six products for each token may round once.
    sizes = before.double().abs() + exact.abs().T @ exact.abs()
    assert (error <= (6 * tokens + 1) * ROUNDING * sizes).all()


@pytest.mark.parametrize("columns", [32, 300, 700])
def test_whole_numbers_are_summed_exactly_by_any_number_of_threads(columns: int) -> None:
    inputs = torch.randint(-30, 31, (77, columns), generator=torch.Generator().manual_seed(columns)).float()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        assert torch.equal(squares(inputs), (inputs.T @ inputs).tril())


def test_a_product_is_exact_to_four_roundings() -> None:
    token = normal(1, 512)
    exact = token.double().T @ token.double()
    error = ((squares(token).double() - exact) / exact).tril().abs()
    assert error.max() <= 4 * ROUNDING


@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_are_those_of_one_thread(dtype: torch.dtype) -> None:
    inputs = normal(150, 333, dtype)
    torch.set_num_threads(1)
    alone = squares(inputs)
    for threads in (2, 3):
        torch.set_num_threads(threads)
        assert torch.equal(squares(inputs), alone)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_moments, "_PACKED_BYTES", 0)
    monkeypatch.setattr(cpu_moments, "_LEAST_TOKENS", 64)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("tokens", [64, 65, 200])
def test_tokens_come_in_chunks_where_they_are_many(tokens: int) -> None:
    inputs = torch.randint(-8, 9, (tokens, 70), generator=torch.Generator().manual_seed(tokens)).float()
    assert torch.equal(squares(inputs), (inputs.T @ inputs).tril())


def test_tokens_may_lie_anywhere() -> None:
    wide = normal(40, 200)
    for inputs in (wide[:, 7:90], wide[::2], wide[:, ::3], wide.T):
        assert torch.equal(squares(inputs), squares(inputs.clone(memory_format=torch.contiguous_format)))


@pytest.mark.parametrize("value", [float("inf"), -float("inf"), float("nan")])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_finite_stays_so(value: float, dtype: torch.dtype) -> None:
    inputs = normal(40, 40, dtype)
    inputs[3, 5] = value
    finite = squares(inputs).isfinite()
    other = torch.arange(40) != 5
    assert not finite[5, :6].any() and not finite[5:, 5].any()
    assert finite[other][:, other].all()


def test_a_nan_of_all_ones_stays_one() -> None:
    inputs = torch.ones(1, 1)
    inputs.view(torch.int32).fill_(0x7FFFFFFF)
    assert squares(inputs).isnan().all()


def test_other_dtypes_and_turned_sums_are_left_to_torch() -> None:
    assert not add_squares(torch.zeros(2, 2), torch.ones(3, 2, dtype=torch.float64))
    turned = torch.zeros(2, 3)[:, :2].t()
    assert not add_squares(turned, torch.ones(3, 2)) and not turned.any()


def test_torch_multiplies_on_as_before() -> None:
    """Its bfloat16 products use the same registers, and remember how they have set them."""
    left, right = normal(64, 96, torch.bfloat16), normal(96, 48, torch.bfloat16)
    product = left @ right
    for columns in (16, 40, 300):
        squares(normal(50, columns))
        assert torch.equal(left @ right, product)
