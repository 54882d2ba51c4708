"""Joint pruning and quantization, activation order, clip search, kept zeros, other scopes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from method_cases import collected, damped64, draw, full_moment
from torch import Tensor

from mbs_ray.errors import InputError
from mbs_ray.methods import GPTQ, RTN, Magnitude, SparseGPT, SparseGPTQ, Statistic, Wanda
from mbs_ray.methods.grid import Grid
from tests.support.examples import examples


def test_joint_without_sparsity_is_gptq() -> None:
    weight, inputs = draw(10, 96)
    moment = full_moment(inputs)
    for options in ({}, {"group_size": 32}, {"symmetric": True, "bits": 2, "clip_search": True}):
        joint = SparseGPTQ(sparsity=0.0, block_size=32, **options).compress(weight, moment)
        gptq = GPTQ(**options).compress(weight, moment)
        assert torch.equal(joint.codes, gptq.codes)
        assert torch.equal(joint.weight, gptq.weight)
        assert joint.loss == pytest.approx(gptq.loss, rel=1e-5)


@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_joint_with_many_bits_is_sparsegpt(pattern: str) -> None:
    weight, inputs = draw(10, 96)
    moment = full_moment(inputs)
    sparse = SparseGPT(block_size=32, pattern=pattern).compress(weight, moment)
    # A grid of 256 values for every single weight has that weight on it.
    exact = SparseGPTQ(bits=8, group_size=1, block_size=32, pattern=pattern).compress(weight, moment)
    assert torch.equal(exact.weight == 0, sparse.weight == 0)
    torch.testing.assert_close(exact.weight, sparse.weight, rtol=1e-4, atol=1e-5)
    assert exact.loss == pytest.approx(sparse.loss, rel=1e-4)
    near = SparseGPTQ(bits=8, group_size=8, block_size=32, pattern=pattern).compress(weight, moment)
    assert near.loss == pytest.approx(sparse.loss, rel=0.05)


@examples(40)
@given(
    sparsity=st.floats(0, 0.9),
    bits=st.integers(2, 8),
    group_size=st.sampled_from([None, 4, 8, 16, 48]),
    block_size=st.sampled_from([4, 8, 16, 48, 96]),
    symmetric=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_joint_zeroes_at_least_k_and_lies_on_its_grid(
    sparsity: float, bits: int, group_size: int | None, block_size: int, symmetric: bool, dtype: torch.dtype
) -> None:
    weight, inputs = draw(5, 48, dtype=dtype)
    options = {"sparsity": sparsity, "bits": bits, "group_size": group_size, "symmetric": symmetric}
    result = SparseGPTQ(block_size=block_size, **options).compress(weight, full_moment(inputs))
    assert int((result.weight == 0).sum()) >= round(sparsity * weight.numel())
    scales, zeros = (t.repeat_interleave(result.group_size, 1) for t in (result.scales, result.zeros))
    steps = result.codes.float() - zeros.float()
    assert torch.equal((steps * scales.float()).to(dtype), result.weight)


def test_joint_is_better_than_one_after_the_other() -> None:
    for seed in range(3):
        weight, inputs = draw(64, 96, seed=seed)
        moment = full_moment(inputs)
        joint = SparseGPTQ(bits=4, block_size=32).compress(weight, moment)
        sparse = SparseGPT(block_size=32).compress(weight, moment)
        after = RTN(bits=4).compress(sparse.weight, moment).weight - weight
        assert joint.loss < float((after @ moment.hessian() * after).sum())


def test_a_joint_grid_covers_the_survivors_alone() -> None:
    # The first weight is pruned for its tiny input; were it covered, the scale would be larger.
    weight = torch.tensor([[5.0, 1.0, -0.9, 0.3]])
    inputs = torch.eye(4) * torch.tensor([0.01, 1.0, 1.0, 1.0])
    result = SparseGPTQ(sparsity=0.25, bits=8, damping=0.0).compress(weight, full_moment(inputs))
    assert result.weight[0, 0] == 0
    torch.testing.assert_close(result.scales[0, 0], torch.tensor(1.9 / 255))


def test_overlapping_groups_and_masks_are_refused() -> None:
    with pytest.raises(InputError, match=r"sparsegpt\+gptq: of group_size 48 and the 128 columns .* one must divide"):
        SparseGPTQ(group_size=48)
    SparseGPTQ(group_size=48, block_size=16)
    with pytest.raises(InputError, match="of group_size 6 and the 4 columns"):
        SparseGPTQ(group_size=6, pattern="2:4")


def test_activation_order_solves_large_inputs_first_with_static_groups() -> None:
    weight, inputs = draw(6, 48, seed=2)
    result = GPTQ(bits=3, group_size=8, activation_order=True).compress(weight, full_moment(inputs))
    order = inputs.double().square().sum(0).argsort(descending=True)
    hessian = damped64(inputs, 0.01)[order][:, order]
    work = weight.double()[:, order].clone()
    static = weight.double().unflatten(1, (-1, 8))
    low, high = static.amin(2).clamp(max=0), static.amax(2).clamp(min=0)
    scale = (high - low) / 7
    zero = (-low / scale).round()
    codes = torch.zeros(6, 48)
    for j, column in enumerate(order.tolist()):
        of_group = scale[:, column // 8], zero[:, column // 8]
        codes[:, column] = ((work[:, j] / of_group[0]).round() + of_group[1]).clamp(0, 7).float()
        final = (codes[:, column].double() - of_group[1]) * of_group[0]
        inverse = torch.linalg.inv(hessian[j:, j:])
        work[:, j:] -= torch.outer(work[:, j] - final, inverse[0] / inverse[0, 0])
    assert torch.equal(result.codes.float(), codes)
    torch.testing.assert_close(result.scales.double(), scale, rtol=1e-5, atol=0)
    assert result.weight.shape == weight.shape


def test_activation_order_helps_where_inputs_differ_much_in_size() -> None:
    better = 0
    for seed in range(5):
        weight, inputs = draw(48, 96, seed=seed)
        inputs *= torch.logspace(-1.5, 1.5, 96)
        moment = full_moment(inputs)
        losses = [GPTQ(bits=3, activation_order=flag).compress(weight, moment).loss for flag in (False, True)]
        better += losses[1] < losses[0]
    assert better >= 4


@pytest.mark.parametrize("symmetric", [False, True])
def test_clip_search_finds_the_least_squared_error(symmetric: bool) -> None:
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(6, 32, generator=generator)
    result = RTN(bits=3, group_size=16, symmetric=symmetric, clip_search=True).compress(weight, None)
    better = 0
    for row in range(6):
        for group in range(2):
            values = weight[row, 16 * group : 16 * group + 16]
            errors = []
            for step in range(41):
                share = 1 - 0.02 * step
                low, high = values.min() * share, values.max() * share
                grid = Grid.covering(low, high, 3, symmetric, torch.float32)
                errors.append(float((grid.values(grid.codes(values)) - values).square().sum()))
            written = result.weight[row, 16 * group : 16 * group + 16]
            assert float((written - values).square().sum()) == pytest.approx(min(errors), rel=1e-4)
            better += min(errors) < errors[0]
    assert better > 3


@pytest.mark.parametrize(
    "method", [GPTQ(bits=3, keep_zeros=True), GPTQ(bits=4, keep_zeros=True, activation_order=True)]
)
def test_gptq_keeps_an_existing_mask(method: GPTQ) -> None:
    weight, inputs = draw(12, 64)
    moment = full_moment(inputs)
    sparse = SparseGPT(block_size=16).compress(weight, moment).weight
    kept = method.compress(sparse, moment)
    assert (kept.weight[sparse == 0] == 0).all()
    lost = GPTQ(bits=method.bits, activation_order=method.activation_order).compress(sparse, moment)
    assert (lost.weight[sparse == 0] != 0).any(), "without the flag the mask is filled by updates"


@examples(40)
@given(
    before=st.floats(0, 0.9),
    after=st.floats(0, 0.9),
    block_size=st.sampled_from([5, 16, 128]),
    dead=st.integers(0, 4),
)
def test_sparsegpt_keeps_an_existing_mask_and_counts_it(
    before: float, after: float, block_size: int, dead: int
) -> None:
    weight, inputs = draw(9, 40)
    inputs[:, :dead] = 0
    sparse = Magnitude(sparsity=before).compress(weight, None).weight
    result = SparseGPT(sparsity=after, block_size=block_size, keep_zeros=True).compress(sparse, full_moment(inputs))
    assert (result.weight[sparse == 0] == 0).all()
    of_dead = result.weight[:, :dead] == 0
    live = 9 * (40 - dead)
    wanted = round(after * 360) - round(after * 9 * dead)
    zeros = int((result.weight[:, dead:] == 0).sum())
    assert zeros == max(wanted, int((sparse[:, dead:] == 0).sum()))
    assert zeros <= live
    assert int(of_dead.sum()) == max(round(after * 9 * dead), int((sparse[:, :dead] == 0).sum()))


def test_groups_keep_an_existing_mask_too() -> None:
    weight, inputs = draw(9, 40)
    sparse = Magnitude(pattern="1:4").compress(weight, None).weight
    result = SparseGPT(pattern="2:4", keep_zeros=True).compress(sparse, full_moment(inputs))
    assert torch.equal(result.weight == 0, sparse == 0)


@examples(40)
@given(sparsity=st.floats(0, 0.95), block_size=st.integers(1, 30), dead=st.integers(0, 5))
def test_in_scope_row_every_row_loses_as_much(sparsity: float, block_size: int, dead: int) -> None:
    weight, inputs = draw(7, 24)
    inputs[:, :dead] = 0
    method = SparseGPT(sparsity=sparsity, scope="row", block_size=block_size)
    zeros = (method.compress(weight, full_moment(inputs)).weight == 0).sum(1)
    assert zeros.tolist() == [round(sparsity * 24)] * 7
    zeros = (Magnitude(sparsity=sparsity, scope="row").compress(weight, None).weight == 0).sum(1)
    assert zeros.tolist() == [round(sparsity * 24)] * 7


def by_sorting(scores: Tensor, count: int) -> Tensor:
    mask = torch.zeros(scores.numel(), dtype=torch.bool)
    mask[sorted(range(scores.numel()), key=lambda i: float(scores.flatten()[i]))[:count]] = True
    return mask.view(scores.shape)


def test_wanda_over_the_whole_linear_prunes_the_lowest_scores_of_all() -> None:
    weight, inputs = draw(7, 12)
    result = Wanda(sparsity=0.4, scope="linear").compress(weight, collected(inputs, Statistic.DIAGONAL))
    scores = weight.double().abs() * inputs.double().square().sum(0).sqrt()
    assert torch.equal(result.weight == 0, by_sorting(scores, round(0.4 * 84)))


def test_wandas_variant_prunes_what_holds_the_least_share_of_its_rows_scores() -> None:
    weight, inputs = draw(7, 12)
    weight[3] *= torch.linspace(0.01, 3, 12)
    result = Wanda(sparsity=0.5, scope="share").compress(weight, collected(inputs, Statistic.DIAGONAL))
    scores = weight.double().abs() * inputs.double().square().sum(0).sqrt()
    shares = torch.stack([torch.stack([row[row <= score].sum() for score in row]) / row.sum() for row in scores])
    assert torch.equal(result.weight == 0, by_sorting(shares, 42))
    # The released search, by bisection, for the one share below which every row is pruned.
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if int((shares <= middle).sum()) < 42 else (low, middle)
    assert torch.equal(result.weight == 0, shares <= high)
    assert (result.weight == 0).sum(1).unique().numel() > 1


@pytest.mark.parametrize("cls", [Magnitude, Wanda, SparseGPT])
def test_a_scope_the_method_does_not_know_is_refused(cls: type) -> None:
    with pytest.raises(InputError, match=f"{cls.name}: scope must be one of {', '.join(cls.scopes)}, got 'all'"):
        cls(scope="all")
    with pytest.raises(InputError, match=f"{cls.name}: scope '{cls.scopes[1]}' has no meaning for pattern '2:4'"):
        cls(scope=cls.scopes[1], pattern="2:4")


def test_labels_tell_options_apart() -> None:
    assert Wanda(scope="share").label == "wanda-50-share"
    assert SparseGPTQ(bits=3, group_size=32, pattern="2:4").label == "sparsegpt+gptq-2:4-3bit-g32"
    assert GPTQ(activation_order=True, clip_search=True).label == "gptq-4bit-clip-act"
