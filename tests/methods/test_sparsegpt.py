"""SparseGPT against explicit inverses of trailing Hessians in float64, and its exact counts."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from method_cases import damped64, draw, full_moment, hessian64
from torch import Tensor

from mbs_ray.methods import Magnitude, Moment, SparseGPT, Statistic, Wanda
from tests.support.examples import examples


def quota(sparsity: float, rows: int, columns: int, stop: int) -> int:
    """Zeros before column `stop`: the share of all zeros that its columns have of all columns, rounded."""
    return round(Fraction(round(sparsity * (rows * columns)) * stop, columns))


def reference(
    weight: Tensor,
    hessian: Tensor,
    *,
    sparsity: float = 0.5,
    block: int = 128,
    pattern: tuple[int, int] | None = None,
    stale: bool = False,
) -> Tensor:
    """Column by column in float64: every update at once, every inverse explicit, every choice by sorting.

    stale: choose n:m groups from the weights as they came.
    """
    work, original = weight.double().clone(), weight.double()
    rows, columns = work.shape
    inverses = [torch.linalg.inv(hessian[j:, j:]) for j in range(columns)]
    scale = torch.stack([inverse[0, 0] for inverse in inverses])
    width = block if pattern is None else pattern[1]
    pruned: set[tuple[int, int]] = set()
    for j in range(columns):
        if j % width == 0:
            stop = min(j + width, columns)
            scores = (original if stale else work).square() / scale
            if pattern is None:
                count = quota(sparsity, rows, columns, stop) - quota(sparsity, rows, columns, j)
                places = [(r, c) for r in range(rows) for c in range(j, stop)]
                pruned |= set(sorted(places, key=lambda p: float(scores[p]))[:count])
            else:
                for r in range(rows):
                    group = sorted(range(j, stop), key=lambda c, r=r: float(scores[r, c]))
                    pruned |= {(r, c) for c in group[: width - pattern[0]]}
        keep = torch.tensor([(r, j) not in pruned for r in range(rows)])
        change = torch.where(keep, 0.0, work[:, j])
        work[:, j:] -= torch.outer(change, inverses[j][0] / inverses[j][0, 0])
        work[:, j] = torch.where(keep, work[:, j], 0.0)
    return work


@pytest.mark.parametrize("block_size", [1, 4, 7, 24, 128])
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.9])
def test_unstructured_equals_the_reference(sparsity: float, block_size: int) -> None:
    weight, inputs = draw(10, 24)
    method = SparseGPT(sparsity=sparsity, block_size=block_size)
    result = method.compress(weight, full_moment(inputs))
    expected = reference(weight, damped64(inputs, 0.01), sparsity=sparsity, block=block_size)
    assert torch.equal(result.weight == 0, expected == 0)
    torch.testing.assert_close(result.weight.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("block_size", [3, 6, 8, 128])
@pytest.mark.parametrize("pattern", ["2:4", "1:2", "4:8", "1:3"])
def test_groups_equal_the_reference_whatever_the_block(pattern: str, block_size: int) -> None:
    keep, group = map(int, pattern.split(":"))
    weight, inputs = draw(10, 24, seed=3)
    result = SparseGPT(pattern=pattern, block_size=block_size).compress(weight, full_moment(inputs))
    hessian = damped64(inputs, 0.01)
    expected = reference(weight, hessian, pattern=(keep, group))
    assert torch.equal(result.weight == 0, expected == 0)
    torch.testing.assert_close(result.weight.double(), expected, rtol=1e-4, atol=1e-4)
    assert ((result.weight == 0).view(10, -1, group).sum(2) == group - keep).all()
    stale = reference(weight, hessian, pattern=(keep, group), stale=True)
    assert not torch.equal(stale == 0, expected == 0), "this case does not tell updated weights from old ones"


def test_pruning_one_weight_is_the_closed_form_of_brain_surgeon() -> None:
    _, inputs = draw(1, 6)
    weight = torch.tensor([[0.05, 1.0, -2.0, 1.5, 3.0, -1.0]])
    result = SparseGPT(sparsity=1 / 6, damping=0.0).compress(weight, full_moment(inputs))
    hessian = hessian64(inputs)
    # Brute force: for each single weight, the best values of the others by least squares.
    losses, solutions = [], []
    for q in range(6):
        others = [j for j in range(6) if j != q]
        change = torch.zeros(6, dtype=torch.float64)
        change[q] = -weight[0, q].double()
        pull = hessian[others][:, q] * change[q]
        change[others] = -torch.linalg.solve(hessian[others][:, others], pull)
        losses.append(float(change @ hessian @ change))
        solutions.append(weight[0].double() + change)
        closed = weight[0, q].double() ** 2 / torch.linalg.inv(hessian)[q, q]
        assert losses[-1] == pytest.approx(float(closed))
    assert min(losses) == losses[0]
    assert result.weight[0, 0] == 0
    torch.testing.assert_close(result.weight[0].double(), solutions[0], rtol=1e-4, atol=1e-5)
    assert result.loss == pytest.approx(losses[0], rel=1e-3)


@examples(100)
@given(
    rows=st.integers(1, 7),
    columns=st.integers(1, 20),
    block_size=st.integers(1, 24),
    sparsity=st.floats(0, 1, exclude_max=True),
    dead=st.sets(st.integers(0, 19)),
)
def test_equal_weights_lose_exactly_k_in_all(
    rows: int, columns: int, block_size: int, sparsity: float, dead: set[int]
) -> None:
    diagonal = torch.tensor([float(j not in dead) for j in range(columns)])
    moment = Moment(Statistic.FULL, columns, 3, diagonal.diag())
    method = SparseGPT(sparsity=sparsity, block_size=block_size)
    result = method.compress(torch.full((rows, columns), 0.5), moment)
    pruned = result.weight == 0
    assert pruned.sum() == round(sparsity * (rows * columns))
    assert (result.weight[~pruned] == 0.5).all()
    is_dead = diagonal == 0
    assert pruned[:, is_dead].sum() == round(sparsity * (rows * int(is_dead.sum())))
    assert result.dead_columns == int(is_dead.sum())


@examples(40)
@given(
    shape=st.tuples(st.integers(1, 6), st.integers(1, 16)),
    sparsity=st.floats(0, 1, exclude_max=True),
    block_size=st.integers(1, 20),
    tokens=st.integers(1, 20),
    seed=st.integers(0, 3),
)
def test_any_layer_loses_exactly_k_in_every_block(
    shape: tuple[int, int], sparsity: float, block_size: int, tokens: int, seed: int
) -> None:
    weight, inputs = draw(*shape, seed=seed, tokens=tokens)
    result = SparseGPT(sparsity=sparsity, block_size=block_size).compress(weight, full_moment(inputs))
    rows, columns = shape
    for start in range(0, columns, block_size):
        stop = min(start + block_size, columns)
        count = quota(sparsity, rows, columns, stop) - quota(sparsity, rows, columns, start)
        assert (result.weight[:, start:stop] == 0).sum() == count


def test_ties_of_a_block_go_row_by_row() -> None:
    moment = Moment(Statistic.FULL, 4, 1, torch.eye(4))
    result = SparseGPT(sparsity=0.5).compress(torch.ones(3, 4), moment)
    assert result.weight.tolist() == [[0, 0, 0, 0], [0, 0, 1, 1], [1, 1, 1, 1]]


def test_dead_columns_are_pruned_by_magnitude_and_the_rest_as_without_them() -> None:
    weight, inputs = draw(6, 20)
    dead = [2, 3, 11, 19]
    live = [j for j in range(20) if j not in dead]
    inputs[:, dead] = 0
    result = SparseGPT().compress(weight, full_moment(inputs))
    alone = SparseGPT().compress(weight[:, live], full_moment(inputs[:, live]))
    assert torch.equal(result.weight[:, live] == 0, alone.weight == 0)
    torch.testing.assert_close(result.weight[:, live], alone.weight)
    assert torch.equal(result.weight[:, dead], Magnitude().compress(weight[:, dead], None).weight)
    assert (result.dead_columns, alone.dead_columns) == (4, 0)


def test_in_groups_dead_columns_are_neither_erased_nor_updated() -> None:
    weight, inputs = draw(8, 16)
    inputs[:, [1, 6]] = 0
    weight[:, [1, 6]] *= 10
    result = SparseGPT(pattern="2:4").compress(weight, full_moment(inputs))
    assert ((result.weight == 0).view(8, 4, 4).sum(2) == 2).all()
    kept = result.weight[:, [1, 6]] != 0
    assert kept.float().mean() > 0.8
    assert torch.equal(result.weight[:, [1, 6]][kept], weight[:, [1, 6]][kept])


@pytest.mark.parametrize("options", [{}, {"pattern": "2:4"}])
def test_better_than_wanda_better_than_magnitude_on_correlated_inputs(options: dict[str, str]) -> None:
    for seed in range(3):
        weight, inputs = draw(64, 96, seed=seed)
        moment = full_moment(inputs)
        losses = [cls(**options).compress(weight, moment).loss for cls in (SparseGPT, Wanda, Magnitude)]
        assert losses == sorted(losses)
