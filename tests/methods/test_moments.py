"""Moments: raw sums that add up exactly."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from method_cases import collected, draw, hessian64
from torch import Tensor

from mbs_ray.methods import Moment, Statistic, moments, squared_outputs
from mbs_ray.methods.precision import exact_float32
from tests.support.examples import examples


@pytest.fixture(autouse=True, params=[True, False], ids=["kernel", "torch"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether sums are left to the matrix units of a CPU that has some; else torch sums."""
    if not request.param:
        monkeypatch.setattr(moments, "add_squares", lambda *_: False)


BOTH = [Statistic.FULL, Statistic.DIAGONAL]


def whole_numbers(tokens: int, columns: int, seed: int = 0) -> Tensor:
    """Inputs whose products and sums float32 holds exactly."""
    return torch.randint(-8, 9, (tokens, columns), generator=torch.Generator().manual_seed(seed)).float()


@pytest.mark.parametrize("statistic", BOTH)
@examples(25)
@given(cuts=st.lists(st.integers(0, 40), max_size=4), data=st.data())
def test_parts_merged_in_any_order_are_the_whole(statistic: Statistic, cuts: list[int], data: st.DataObject) -> None:
    inputs = whole_numbers(40, 5)
    edges = [0, *sorted(cuts), 40]
    parts = [collected(inputs[a:b], statistic) for a, b in pairwise(edges)]
    merged = Moment.zeros(5, statistic)
    for part in data.draw(st.permutations(parts)):
        merged.merge(part)
    whole = collected(inputs, statistic)
    assert torch.equal(merged.sum, whole.sum)
    assert merged.tokens == whole.tokens == 40


def test_order_of_merging_changes_only_the_rounding() -> None:
    _, inputs = draw(1, 16, tokens=300)
    parts = [collected(inputs[a:b], Statistic.FULL) for a, b in [(0, 7), (7, 200), (200, 300)]]
    forward, backward = (Moment.zeros(16, Statistic.FULL) for _ in range(2))
    for there, back in zip(parts, reversed(parts), strict=True):
        forward.merge(there)
        backward.merge(back)
    torch.testing.assert_close(forward.sum, backward.sum, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(forward.hessian().double(), hessian64(inputs), rtol=1e-4, atol=1e-4)


def test_tokens_count_equally_whatever_the_part_they_come_in() -> None:
    inputs = whole_numbers(10, 3)
    moment = collected(inputs[:1], Statistic.FULL)
    moment.merge(collected(inputs[1:], Statistic.FULL))
    torch.testing.assert_close(moment.hessian().double(), hessian64(inputs), rtol=1e-6, atol=0)


def test_leading_dimensions_are_all_tokens() -> None:
    inputs = whole_numbers(24, 4)
    for statistic in BOTH:
        moment = collected(inputs.view(2, 3, 4, 4), statistic)
        assert moment.tokens == 24
        assert torch.equal(moment.sum, collected(inputs, statistic).sum)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_give_exact_products(dtype: torch.dtype) -> None:
    token = torch.randn(1, 64, generator=torch.Generator().manual_seed(1)).to(dtype)
    exact = token.double().T @ token.double()
    assert torch.equal(collected(token, Statistic.FULL).sum.double(), exact)
    assert torch.equal(collected(token, Statistic.DIAGONAL).sum.double(), exact.diagonal())


def test_the_diagonal_is_the_same_from_either_statistic() -> None:
    inputs = whole_numbers(50, 6)
    full, diagonal = (collected(inputs, statistic).diagonal() for statistic in BOTH)
    assert torch.equal(full, diagonal)
    assert torch.equal(full, inputs.square().sum(0))


def test_sums_accumulate_in_place_and_carry_no_graph() -> None:
    moment = Moment.zeros(4, Statistic.FULL)
    storage = moment.sum.data_ptr()
    moment.add(whole_numbers(3, 4).requires_grad_())
    moment.merge(collected(whole_numbers(2, 4), Statistic.FULL))
    assert moment.sum.data_ptr() == storage
    assert not moment.sum.requires_grad


def test_what_does_not_fit_is_refused() -> None:
    moment = Moment.zeros(4, Statistic.DIAGONAL)
    with pytest.raises(ValueError, match="3 columns"):
        moment.add(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="cannot merge a full moment"):
        moment.merge(Moment.zeros(4, Statistic.FULL))
    with pytest.raises(ValueError, match="full moment"):
        moment.hessian()
    with pytest.raises(ValueError, match="at least one token"):
        Moment.zeros(4, Statistic.FULL).hessian()
    with pytest.raises(ValueError, match="takes None"):
        Moment.zeros(4, Statistic.NONE)
    with pytest.raises(ValueError, match="float32 of shape"):
        Moment(Statistic.FULL, 4, 1, torch.zeros(4, 4, dtype=torch.bfloat16))


def test_full_precision_is_switched_on_and_what_was_is_restored() -> None:
    cuda, cpu = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul
    before = cuda.fp32_precision, cpu.fp32_precision
    try:
        cuda.fp32_precision, cpu.fp32_precision = "tf32", "bf16"
        with pytest.raises(KeyError), exact_float32():
            assert (cuda.fp32_precision, cpu.fp32_precision) == ("ieee", "ieee")
            assert not torch.is_grad_enabled()
            raise KeyError
        assert (cuda.fp32_precision, cpu.fp32_precision) == ("tf32", "bf16")
        assert torch.is_grad_enabled()
        _, inputs = draw(1, 32)
        lowered = collected(inputs, Statistic.FULL).sum
    finally:
        cuda.fp32_precision, cpu.fp32_precision = before
    assert torch.equal(lowered, collected(inputs, Statistic.FULL).sum)


@pytest.mark.parametrize("columns", [5, 256, 700])
def test_many_tokens_accumulated_and_completed_once_are_those_added_one_after_the_other(columns: int) -> None:
    parts = torch.randn(3, 11, columns, generator=torch.Generator().manual_seed(columns))
    added, accumulated = (Moment.zeros(columns, Statistic.FULL) for _ in range(2))
    for part in parts:
        added.add(part)
        accumulated.accumulate(part)
    accumulated.complete()
    assert torch.equal(accumulated.sum, added.sum) and torch.equal(added.sum, added.sum.t())
    assert accumulated.tokens == added.tokens == 33
    exact = parts.flatten(0, 1).double()
    torch.testing.assert_close(added.sum.double(), exact.t() @ exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("columns", [7, 1024, 1500])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_squared_outputs_are_found_from_a_moment(columns: int, dtype: torch.dtype) -> None:
    weight, inputs = draw(5, columns, tokens=40, dtype=dtype)
    moment = collected(inputs, Statistic.FULL)
    expected = float((inputs.double() @ weight.double().T).square().sum())
    assert float(squared_outputs(weight, moment)) == pytest.approx(expected, rel=1e-4)
