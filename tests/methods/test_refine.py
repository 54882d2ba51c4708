"""Coordinate descent after a solver: against float64, closed forms and every other choice there is."""

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from method_cases import damped64, draw, full_moment, hessian64
from torch import Tensor

from mbs_ray.errors import InputError
from mbs_ray.methods import GPTQ, Compressed, SparseGPT, SparseGPTQ, build_method
from tests.support.examples import examples

METHODS: dict[str, Any] = {
    "sparsegpt": SparseGPT(sparsity=0.5, block_size=16),
    "keep-zeros": SparseGPT(pattern="2:4", keep_zeros=True),
    "n:m": SparseGPT(pattern="4:16"),
    "groups": GPTQ(bits=3, group_size=8),
    "rows": GPTQ(bits=4),
    "order": GPTQ(bits=3, group_size=8, activation_order=True),
    "symmetric": GPTQ(bits=4, group_size=16, symmetric=True, keep_zeros=True),
    "joint": SparseGPTQ(pattern="2:4", bits=4, group_size=16),
}


def error64(before: Tensor, after: Tensor, hessian: Tensor) -> float:
    change = after.double() - before.double()
    return float(((change @ hessian) * change).sum())


def pass64(weight: Tensor, before: Compressed, hessian: Tensor, pruned: Tensor, group: int | None) -> Tensor:
    """One pass, value by value in float64; with a group its scales first, rounded to the weight's dtype."""
    values, dtype = before.weight.double(), weight.dtype
    rows, columns = values.shape
    for row in range(rows):
        for j in range(columns):
            own = slice(j, j + (group or columns))
            if group is not None and j % group == 0:
                assert before.codes is not None and before.scales is not None and before.zeros is not None
                steps = before.codes[row, own].double() - before.zeros[row, j // group].double()
                slope = ((weight[row].double() - values[row]) @ hessian)[own]
                curved = steps @ hessian[own, own] @ steps
                scale = before.scales[row, j // group].double()
                if curved > 0:
                    scale = (scale + steps @ slope / curved).to(dtype).double()
                values[row, own] = (steps * scale).to(dtype).double()
            slope = ((weight[row].double() - values[row]) @ hessian)[j]
            best = values[row, j] + slope / hessian[j, j]
            if pruned[row, j]:
                best = torch.zeros(())
            if group is not None:
                assert before.zeros is not None
                zero, top = before.zeros[row, j // group].double(), 2**3 - 1
                best = ((best / scale).round() + zero).clamp(0, top).sub(zero).mul(scale)
            values[row, j] = best.to(dtype).double()
    return values


@pytest.mark.parametrize("name", ["sparsegpt", "n:m"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_pass_over_a_mask_is_that_of_float64(name: str, dtype: torch.dtype) -> None:
    weight, inputs = draw(6, 48, dtype=dtype)
    solved = METHODS[name].compress(weight, full_moment(inputs))
    refined = replace(METHODS[name], refine=1).compress(weight, full_moment(inputs))
    expected = pass64(weight, solved, damped64(inputs, 0.01), solved.weight == 0, None)
    torch.testing.assert_close(
        refined.weight.double(), expected, rtol=1e-2 if dtype is torch.bfloat16 else 1e-4, atol=1e-5
    )
    assert torch.equal(refined.weight == 0, solved.weight == 0)


@pytest.mark.parametrize("name", ["groups", "order"])
def test_a_pass_over_codes_is_that_of_float64(name: str) -> None:
    weight, inputs = draw(6, 48)
    solved = METHODS[name].compress(weight, full_moment(inputs))
    refined = replace(METHODS[name], refine=1).compress(weight, full_moment(inputs))
    expected = pass64(weight, solved, damped64(inputs, 0.01), torch.zeros(6, 48, dtype=torch.bool), 8)
    torch.testing.assert_close(refined.weight.double(), expected, rtol=1e-4, atol=1e-5)


def test_many_passes_end_at_the_least_squares_of_the_mask() -> None:
    weight, inputs = draw(5, 24)
    method = SparseGPT(sparsity=0.6, block_size=8, damping=0.05, refine=100)
    refined = method.compress(weight, full_moment(inputs)).weight
    hessian = damped64(inputs, 0.05)
    for before, after in zip(weight.double(), refined.double(), strict=True):
        kept = after != 0
        best = torch.linalg.solve(hessian[kept][:, kept], (hessian @ before)[kept])
        torch.testing.assert_close(after[kept], best, rtol=1e-3, atol=1e-4)


def test_in_the_end_no_other_code_of_any_weight_is_better() -> None:
    weight, inputs = draw(4, 16, seed=3)
    refined = GPTQ(bits=2, group_size=8, refine=50).compress(weight, full_moment(inputs))
    assert refined.codes is not None and refined.scales is not None and refined.zeros is not None
    hessian = damped64(inputs, 0.01)
    least = error64(weight, refined.weight, hessian)
    for row, column, code in itertools.product(range(4), range(16), range(4)):
        other = refined.weight.clone()
        other[row, column] = (code - refined.zeros[row, column // 8].float()) * refined.scales[row, column // 8]
        assert error64(weight, other, hessian) >= least * (1 - 1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_nothing_gets_worse_and_all_stays_what_it_was_asked_to_be(name: str) -> None:
    dtype = torch.bfloat16
    weight, inputs = draw(24, 64, dtype=dtype)
    weight[:, 7] = 0
    inputs[:, 5] = 0
    method, hessian = METHODS[name], hessian64(inputs)
    solved = method.compress(weight, full_moment(inputs))
    before = error64(weight, solved.weight, hessian)
    for passes in (1, 3):
        refined = replace(method, refine=passes).compress(weight, full_moment(inputs))
        after = error64(weight, refined.weight, hessian)
        assert after < 0.99 * before
        before = after
        assert refined.loss == pytest.approx(after, rel=1e-4)
        assert refined.damping == solved.damping and refined.dead_columns == 1
        if name in ("sparsegpt", "keep-zeros", "n:m"):
            assert torch.equal(refined.weight == 0, solved.weight == 0)
        if name == "joint":
            assert bool(((refined.weight == 0).unflatten(1, (-1, 4)).sum(-1) >= 2).all())
        if name == "symmetric":
            assert not bool(refined.weight[:, 7].any())
        if refined.codes is not None:
            assert refined.scales is not None and refined.zeros is not None
            size = refined.group_size
            scales, zeros = (one.float().repeat_interleave(size, 1) for one in (refined.scales, refined.zeros))
            assert torch.equal(((refined.codes - zeros) * scales).to(dtype), refined.weight)


@examples(60)
@given(
    rows=st.integers(1, 5),
    groups=st.integers(1, 6),
    size=st.integers(1, 12),
    bits=st.integers(2, 4),
    dead=st.integers(0, 3),
    seed=st.integers(0, 20),
)
def test_no_size_makes_it_worse_and_dead_columns_have_no_say(
    rows: int, groups: int, size: int, bits: int, dead: int, seed: int
) -> None:
    weight, inputs = draw(rows, groups * size, seed=seed)
    inputs[:, : min(dead, groups * size - 1)] = 0
    method = GPTQ(bits=bits, group_size=size)
    solved = method.compress(weight, full_moment(inputs))
    refined = replace(method, refine=1).compress(weight, full_moment(inputs))
    undamped = hessian64(inputs)
    live = undamped.diagonal() > 0
    hessian = undamped + 0.01 * undamped.diagonal()[live].mean() * live.double().diag()
    before, after = (error64(weight, one.weight, hessian) for one in (solved, refined))
    assert after <= before * (1 + 1e-5) + 1e-9
    assert refined.loss == pytest.approx(error64(weight, refined.weight, undamped), rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("value", [-1, 101, 1.0, True])
def test_passes_are_a_whole_number(value: Any) -> None:
    with pytest.raises(InputError, match="sparsegpt: refine must be a whole number from 0 to 100"):
        build_method({"name": "sparsegpt", "refine": value})
