"""RTN and GPTQ: codes on the grid bit for bit, and explicit inverses of trailing Hessians in float64."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from method_cases import damped64, draw, full_moment
from torch import Tensor

from mbs_ray.errors import InputError
from mbs_ray.methods import GPTQ, RTN, Compressed
from mbs_ray.methods.column_grids import ColumnGrids
from mbs_ray.methods.grid import Grid
from tests.support.examples import examples

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def grid64(values: Tensor, bits: int, symmetric: bool, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Scale and zero point of [rows, group], [rows, 1] each, the scale rounded to what is stored."""
    return covering64(values.amin(1, keepdim=True), values.amax(1, keepdim=True), bits, symmetric, dtype)


def covering64(low: Tensor, high: Tensor, bits: int, symmetric: bool, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    top = 2**bits - 1
    low, high = low.clamp(max=0), high.clamp(min=0)
    if symmetric:
        high = torch.maximum(high, -low)
        scale, zero = (2 * high / top).to(dtype).double(), torch.full_like(high, 2 ** (bits - 1))
    else:
        scale = ((high - low) / top).to(dtype).double()
        zero = (-low / scale).round().clamp(0, top)
    return scale, zero


def better64(
    values: Tensor, before: Tensor, pivots: Tensor, bits: int, symmetric: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Of the grid over the values and the one over what of their range lies within that of `before`, the better."""
    low = torch.maximum(values.amin(1, keepdim=True), before.amin(1, keepdim=True))
    high = torch.minimum(values.amax(1, keepdim=True), before.amax(1, keepdim=True))
    grids = [grid64(values, bits, symmetric, dtype), covering64(low, high, bits, symmetric, dtype)]
    errors = []
    for scale, zero in grids:
        codes = ((values / scale).round() + zero).clamp(0, 2**bits - 1)
        error = ((((codes - zero) * scale).to(dtype).double() - values).square() / pivots).sum(1, keepdim=True)
        errors.append(torch.where(scale > 0, error, torch.inf))
    second = errors[1] < errors[0]
    return tuple(torch.where(second, there, here) for here, there in zip(*grids, strict=True))


def reference(
    weight: Tensor, hessian: Tensor, ours: Compressed, bits: int, symmetric: bool, *, stale: bool = False
) -> tuple[Tensor, Tensor]:
    """Codes and scales column by column in float64, every update at once, every inverse explicit.

    Where two codes are equally near (the largest weight of a symmetric grid always lies half a step from
    its code), ours stands if it is one of the two. stale: take a group's grid from the weights as they came.
    """
    work, original = weight.double().clone(), weight.double()
    columns, group = work.shape[1], ours.group_size
    pivots = torch.stack([torch.linalg.inv(hessian[j:, j:])[0, 0] for j in range(columns)])
    codes, scales = torch.zeros_like(work), []
    for j in range(columns):
        if j % group == 0:
            before = original[:, j : j + group]
            source = before if stale else work[:, j : j + group]
            scale, zero = better64(source, before, pivots[j : j + group], bits, symmetric, weight.dtype)
            scales.append(scale)
        steps = work[:, j : j + 1] / scale
        code = (steps.round() + zero).clamp(0, 2**bits - 1)
        our_code = ours.codes[:, j : j + 1].double()
        tie = ((steps - steps.floor() - 0.5).abs() < 1e-5) & ((our_code - zero - steps).abs() < 0.51)
        codes[:, j : j + 1] = code = torch.where(tie, our_code, code)
        final = ((code - zero) * scale).to(weight.dtype).double()
        inverse = torch.linalg.inv(hessian[j:, j:])
        work[:, j:] -= (work[:, j : j + 1] - final) * inverse[0] / inverse[0, 0]
        work[:, j : j + 1] = final
    return codes, torch.cat(scales, 1)


def assert_on_grid(result: Compressed, bits: int, symmetric: bool) -> None:
    rows, columns = result.weight.shape
    assert result.codes is not None and result.scales is not None and result.zeros is not None
    assert result.group_size is not None
    groups = columns // result.group_size
    assert result.scales.shape == result.zeros.shape == (rows, groups)
    assert result.scales.dtype == result.weight.dtype
    assert result.codes.dtype == result.zeros.dtype == torch.uint8
    assert result.codes.shape == result.weight.shape
    assert int(result.codes.max()) < 2**bits
    assert int(result.zeros.max()) < 2**bits
    if symmetric:
        assert (result.zeros == 2 ** (bits - 1)).all()
    scales, zeros = (t.repeat_interleave(result.group_size, 1) for t in (result.scales, result.zeros))
    steps = result.codes.float() - zeros.float()
    assert torch.equal((steps * scales.float()).to(result.weight.dtype), result.weight)
    # Zero is always on the grid, so a zero weight is a zero code step and the other way round.
    assert torch.equal(steps == 0, result.weight == 0)


@examples(80)
@given(
    cls=st.sampled_from([RTN, GPTQ]),
    bits=st.integers(2, 8),
    groups=st.integers(1, 4),
    group_size=st.integers(1, 9),
    whole_row=st.booleans(),
    symmetric=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    size=st.sampled_from([1e-3, 1.0, 1e3]),
    seed=st.integers(0, 3),
)
def test_codes_lie_on_the_grid_bit_for_bit(
    cls: type[RTN] | type[GPTQ],
    bits: int,
    groups: int,
    group_size: int,
    whole_row: bool,
    symmetric: bool,
    dtype: torch.dtype,
    size: float,
    seed: int,
) -> None:
    columns = groups * group_size
    weight, inputs = draw(3, columns, seed=seed)
    weight = (weight * size).to(dtype)
    method = cls(bits=bits, group_size=None if whole_row else group_size, symmetric=symmetric)
    result = method.compress(weight, full_moment(inputs))
    assert result.weight.dtype == dtype
    assert result.group_size == (columns if whole_row else group_size)
    assert_on_grid(result, bits, symmetric)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("group_size", [None, 4, 24])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rtn_takes_the_nearest_value_of_every_grid(dtype: torch.dtype, group_size: int | None, symmetric: bool) -> None:
    weight, _ = draw(5, 24, dtype=dtype)
    result = RTN(bits=3, group_size=group_size, symmetric=symmetric).compress(weight, None)
    for start in range(0, 24, group_size or 24):
        values = weight[:, start : start + (group_size or 24)].double()
        scale, zero = grid64(values, 3, symmetric, dtype)
        scales = result.scales[:, [start // len(values[0])]].double()
        torch.testing.assert_close(scales, scale, rtol=1e-6, atol=0)
        grid = (torch.arange(8) - zero) * scale  # [rows, 8]
        distance = (values[:, :, None] - grid[:, None, :]).abs()
        written = result.weight[:, start : start + values.shape[1]].double()
        torch.testing.assert_close((written - values).abs(), distance.amin(2), rtol=0, atol=2e-2 * float(scale.max()))
    assert result.loss is None


def test_the_error_of_a_rounded_weight_is_at_most_half_a_step() -> None:
    weight, _ = draw(20, 40)
    for bits in range(2, 9):
        result = RTN(bits=bits).compress(weight, None)
        assert ((result.weight - weight).abs() <= 0.501 * result.scales).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("group_size", [1, 4, 6, 8, 12, 16, 24, 48, None])
def test_gptq_equals_the_reference_with_groups_below_at_and_above_a_leaf_of_the_solver(
    group_size: int | None, symmetric: bool, dtype: torch.dtype
) -> None:
    weight, inputs = draw(6, 48, seed=1, dtype=dtype)
    method = GPTQ(bits=4, group_size=group_size, symmetric=symmetric)
    result = method.compress(weight, full_moment(inputs))
    codes, scales = reference(weight, damped64(inputs, 0.01), result, 4, symmetric)
    assert torch.equal(result.codes.double(), codes)
    # Float32 and float64 may fall on two sides of one rounding step of the stored scale, and what updates leave of a
    # weight is as exact as the weight was large.
    atol = torch.finfo(torch.float32).eps * float(weight.abs().max())
    torch.testing.assert_close(result.scales.double(), scales, rtol=max(torch.finfo(dtype).eps, 1e-4), atol=atol)
    assert_on_grid(result, 4, symmetric)


@pytest.mark.parametrize("group_size", [4, 8, 12, 32])
def test_scales_come_from_updated_weights(group_size: int) -> None:
    weight, inputs = draw(6, 96, seed=1)
    result = GPTQ(bits=3, group_size=group_size).compress(weight, full_moment(inputs))
    hessian = damped64(inputs, 0.01)
    _, fresh = reference(weight, hessian, result, 3, False)
    _, stale = reference(weight, hessian, result, 3, False, stale=True)
    torch.testing.assert_close(result.scales.double(), fresh, rtol=1e-3, atol=0)
    changed = ((stale - fresh).abs() / fresh)[:, 1:]
    assert changed.mean() > 0.01, "this case does not tell updated weights from old ones"


def test_a_scale_is_made_larger_by_an_update_in_its_own_block() -> None:
    # Two equal inputs: the second weight takes over the whole error of the first.
    inputs = torch.tensor([[1.0, 1.0]])
    weight = torch.tensor([[1.0, 1.0], [0.5, 1.0]])
    method = GPTQ(bits=2, group_size=1, symmetric=True, damping=1e-4)
    result = method.compress(weight, full_moment(inputs))
    # A group of one, symmetric, 2 bits: w = 1 has scale 2/3 and becomes 2/3, so 1/3 moves to the second.
    torch.testing.assert_close(result.weight[0, 0], torch.tensor(2 / 3))
    torch.testing.assert_close(result.scales[0, 1], torch.tensor((1 + 1 / 3) * 2 / 3), rtol=1e-3, atol=0)


def test_grids_that_may_clip_what_updates_push_out_are_better_than_grids_that_cover_it() -> None:
    class Following(ColumnGrids):
        def grid(self, weights: Tensor, importance: Tensor, before: object) -> Grid:
            return super().grid(weights, importance, None)

    ratios = []
    for seed in range(6):
        weight, inputs = draw(48, 96, seed=seed)
        moment = full_moment(inputs)
        own = GPTQ(bits=3, group_size=32).compress(weight, moment).loss
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("mbs_ray.methods.gptq.ColumnGrids", Following)
            ratios.append(own / GPTQ(bits=3, group_size=32).compress(weight, moment).loss)
    assert sum(ratios) / 6 < 0.99


def test_gptq_without_correlation_is_rtn() -> None:
    weight, _ = draw(6, 16)
    moment = full_moment(torch.eye(16) * 3)
    for options in ({}, {"group_size": 4}, {"symmetric": True, "bits": 2}):
        gptq, rtn = (cls(**options).compress(weight, moment) for cls in (GPTQ, RTN))
        assert torch.equal(gptq.weight, rtn.weight)
        assert torch.equal(gptq.codes, rtn.codes)


def test_gptq_is_better_than_rtn_on_correlated_inputs() -> None:
    for bits in (2, 3, 4, 8):
        weight, inputs = draw(48, 64)
        moment = full_moment(inputs)
        assert GPTQ(bits=bits).compress(weight, moment).loss < RTN(bits=bits).compress(weight, moment).loss


def test_dead_columns_are_rounded_to_nearest_and_counted() -> None:
    weight, inputs = draw(6, 16)
    inputs[:, [3, 9]] = 0
    result = GPTQ(bits=3).compress(weight, full_moment(inputs))
    assert result.dead_columns == 2
    for j in (3, 9):
        steps = (weight[:, j] / result.scales[:, 0]).round() + result.zeros[:, 0]
        assert torch.equal(result.codes[:, j].float(), steps.clamp(0, 7))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("symmetric", [False, True])
def test_constant_zero_and_tiny_groups_stay_finite(dtype: torch.dtype, symmetric: bool) -> None:
    rows = [[0.0] * 4, [2.0] * 4, [-2.0] * 4, [1e-7] * 4]
    weight = torch.tensor(rows).to(dtype)
    _, inputs = draw(1, 4)
    for cls in (RTN, GPTQ):
        result = cls(bits=8, symmetric=symmetric).compress(weight, full_moment(inputs))
        assert (result.weight[0] == 0).all()
        assert result.scales.isfinite().all()
        assert (result.scales > 0).all()
        assert result.weight.isfinite().all()
        if cls is RTN:
            torch.testing.assert_close(result.weight[1:3], weight[1:3], rtol=1e-2, atol=0)


def test_the_grid_always_holds_zero() -> None:
    grid = Grid.covering(torch.tensor([3.0]), torch.tensor([5.0]), 2, False, torch.float32)
    assert grid.values(torch.arange(4.0)).tolist() == pytest.approx([0, 5 / 3, 10 / 3, 5])


@pytest.mark.parametrize("cls", [RTN, GPTQ])
def test_bad_fields_are_named(cls: type) -> None:
    for bits in (1, 9, 4.0, "4", True):
        with pytest.raises(InputError, match=f"{cls.name}: bits must be a whole number from 2 to 8, got"):
            cls(bits=bits)
    for group_size in (0, -1, 2.0):
        with pytest.raises(InputError, match=f"{cls.name}: group_size must be a whole number at least 1"):
            cls(group_size=group_size)
    with pytest.raises(InputError, match=f"{cls.name}: symmetric must be true or false, got 1"):
        cls(symmetric=1)


@pytest.mark.parametrize("cls", [RTN, GPTQ])
def test_a_group_that_does_not_divide_the_columns_names_the_linear(cls: type) -> None:
    cls(group_size=8).check(1, 16, "h.0.dense")
    with pytest.raises(InputError, match=r"h\.0\.dense: group_size 12 does not divide the 16 columns"):
        cls(group_size=12).check(1, 16, "h.0.dense")
    with pytest.raises(InputError, match="does not divide"):
        cls(group_size=12).compress(torch.ones(2, 16), None)


def test_labels_are_short() -> None:
    assert RTN().label == "rtn-4bit"
    assert GPTQ(bits=3).label == "gptq-3bit"
    assert GPTQ(group_size=128).label == "gptq-4bit-g128"
    assert GPTQ(group_size=128, symmetric=True).label == "gptq-4bit-g128-sym"
