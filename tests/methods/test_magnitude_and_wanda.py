"""Magnitude and Wanda against sorting, brute force and float64."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from method_cases import collected, draw, full_moment

from mbs_ray.methods import Magnitude, Statistic, Wanda
from tests.support.examples import examples

SHARES = st.floats(0, 1, exclude_max=True)
SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 12))


@examples(80)
@given(shape=SHAPES, sparsity=SHARES, dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_magnitude_prunes_exactly_k_of_equal_weights_the_first(
    shape: tuple[int, int], sparsity: float, dtype: torch.dtype
) -> None:
    weight = torch.full(shape, -0.3, dtype=dtype)
    result = Magnitude(sparsity=sparsity).compress(weight, None)
    pruned = (result.weight == 0).flatten()
    count = round(sparsity * weight.numel())
    assert pruned.nonzero().flatten().tolist() == list(range(count))
    assert result.sparsity == pytest.approx(count / weight.numel())


def test_magnitude_prunes_the_smallest_and_leaves_the_rest() -> None:
    weight, _ = draw(7, 11)
    result = Magnitude(sparsity=0.3).compress(weight, None)
    order = weight.abs().flatten().sort().indices
    expected = weight.clone().flatten()
    expected[order[:23]] = 0  # 0.3 * 77 = 23.1
    assert torch.equal(result.weight, expected.view(7, 11))
    assert result.loss is None
    assert (result.damping, result.dead_columns) == (0.0, 0)


@examples(80)
@given(shape=SHAPES, sparsity=SHARES, dead=st.integers(0, 12), seed=st.integers(0, 5))
def test_wanda_prunes_exactly_k_of_every_row(shape: tuple[int, int], sparsity: float, dead: int, seed: int) -> None:
    weight, inputs = draw(*shape, seed=seed)
    inputs[:, :dead] = 0
    result = Wanda(sparsity=sparsity).compress(weight, collected(inputs, Statistic.DIAGONAL))
    pruned = result.weight == 0
    assert pruned.sum(1).tolist() == [round(sparsity * shape[1])] * shape[0]
    assert torch.equal(result.weight[~pruned], weight[~pruned])
    dead = min(dead, shape[1])
    assert result.dead_columns == dead
    assert pruned[:, :dead].sum(1).tolist() == [round(sparsity * dead)] * shape[0]


def test_wanda_breaks_ties_by_index() -> None:
    result = Wanda(sparsity=0.4).compress(torch.ones(2, 5), collected(torch.ones(3, 5), Statistic.DIAGONAL))
    assert result.weight.tolist() == [[0, 0, 1, 1, 1]] * 2


def test_wanda_is_the_best_mask_of_every_row_if_inputs_were_uncorrelated() -> None:
    weight, inputs = draw(4, 6)
    result = Wanda(sparsity=0.5).compress(weight, collected(inputs, Statistic.DIAGONAL))
    norms = inputs.double().square().sum(0)
    for row, kept in zip(weight.double(), result.weight, strict=True):
        losses = {
            chosen: sum(float(row[j] ** 2 * norms[j]) for j in chosen) for chosen in itertools.combinations(range(6), 3)
        }
        best = min(losses, key=losses.__getitem__)
        assert set(best) == set((kept == 0).nonzero().flatten().tolist())


@pytest.mark.parametrize("pattern", ["2:4", "1:4", "4:8", "3:4"])
def test_every_group_keeps_its_best_n(pattern: str) -> None:
    keep, group = map(int, pattern.split(":"))
    weight, inputs = draw(5, 16)
    norms = inputs.double().square().sum(0).sqrt()
    cases = [
        (Magnitude(pattern=pattern), None, weight.double().abs()),
        (Wanda(pattern=pattern), full_moment(inputs), weight.double().abs() * norms),
    ]
    for method, moment, scores in cases:
        result = method.compress(weight, moment)
        best = scores.view(5, -1, group).topk(keep, dim=2).indices
        expected = torch.zeros(5, 16 // group, group).scatter(2, best, 1).view(5, 16).bool()
        assert torch.equal(result.weight != 0, expected)
        assert torch.equal(result.weight[expected], weight[expected])


def test_wanda_prunes_dead_columns_by_magnitude_at_the_same_ratio() -> None:
    weight, inputs = draw(6, 12)
    dead, live = [0, 3, 7, 10], [1, 2, 4, 5, 6, 8, 9, 11]
    inputs[:, dead] = 0
    result = Wanda(sparsity=0.5).compress(weight, collected(inputs, Statistic.DIAGONAL))
    alone = Wanda(sparsity=0.5).compress(weight[:, live], collected(inputs[:, live], Statistic.DIAGONAL))
    assert torch.equal(result.weight[:, live], alone.weight)
    kept = weight[:, dead].abs().topk(2, dim=1).indices.sort(1).values
    assert torch.equal(result.weight[:, dead].abs().topk(2, dim=1).indices.sort(1).values, kept)
    assert (result.weight[:, dead] == 0).sum(1).tolist() == [2] * 6


def test_in_groups_a_dead_column_counts_as_one_of_average_norm() -> None:
    inputs = torch.tensor([[1.0, 3.0, 0.0, 2.0]])  # mean square of the live columns: 14/3 = 2.16²
    weight = torch.tensor([[2.5, 1.0, 1.2, 1.0]])  # scores 2.5, 3, 2.59, 2
    result = Wanda(pattern="2:4").compress(weight, collected(inputs, Statistic.DIAGONAL))
    assert result.weight.tolist() == [[0, 1, pytest.approx(1.2), 0]]
