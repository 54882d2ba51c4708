"""OBC against brute force over masks and explicit inverses in float64, and against SparseGPT."""

import heapq
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from method_cases import damped64, draw, full_moment, hessian64
from torch import Tensor

from mbs_ray.methods import Magnitude, Moment, SparseGPT, Statistic
from mbs_ray.methods.obc import OBC
from tests.support.examples import examples


def loss64(weight: Tensor, original: Tensor, hessian: Tensor) -> float:
    change = weight.double() - original.double()
    return float((change @ hessian * change).sum())


def best_of_mask(row: Tensor, kept: list[int], hessian: Tensor) -> Tensor:
    """The row that is zero outside `kept` and has the least loss, by its normal equations."""
    best = torch.zeros_like(row, dtype=torch.float64)
    best[kept] = torch.linalg.solve(hessian[kept][:, kept], (hessian @ row.double())[kept])
    return best


def trace_of_row(row: Tensor, hessian: Tensor, group: tuple[int, int] = (0, 1)) -> tuple[list[int], list[float]]:
    """Columns in the order of removal and the cost of each, every inverse explicit; group: (keep, size)."""
    work, order, costs = row.double().clone(), [], []
    keep, size = group
    while True:
        left = [j for j in range(len(row)) if j not in order]
        free = [j for j in left if sum(k // size == j // size for k in left) > keep]
        if not free:
            return order, costs
        inverse = torch.linalg.inv(hessian[left][:, left])
        scores = {j: float(work[j] ** 2 / inverse[left.index(j), left.index(j)]) for j in free}
        gone = min(free, key=scores.__getitem__)
        i = left.index(gone)
        work[left] -= work[gone] / inverse[i, i] * inverse[i]
        order.append(gone)
        costs.append(scores[gone])


def heap_selection(traces: list[tuple[list[int], list[float]]], count: int) -> set[tuple[int, int]]:
    """The paper's global step: the next weight of the row where that costs least, `count` times."""
    heap = sorted((costs[0], row, 0) for row, (_, costs) in enumerate(traces))
    gone = set()
    while len(gone) < count:
        _, row, step = heapq.heappop(heap)
        order, costs = traces[row]
        gone.add((row, order[step]))
        if step + 1 < len(order):
            heapq.heappush(heap, (costs[step + 1], row, step + 1))
    return gone


def places(mask: Tensor) -> set[tuple[int, int]]:
    return {(int(row), int(column)) for row, column in mask.nonzero()}


@pytest.mark.parametrize("seed", range(6))
def test_the_first_removal_is_the_best_of_all_single_ones(seed: int) -> None:
    weight, inputs = draw(3, 6, seed=seed)
    hessian = damped64(inputs, 0.01)
    expected, losses = [], []
    for row, column in itertools.product(range(3), range(6)):
        pruned = weight.double().clone()
        pruned[row] = best_of_mask(weight[row], [j for j in range(6) if j != column], hessian)
        expected.append(pruned)
        losses.append(loss64(pruned, weight, hessian))
    result = OBC(sparsity=1 / 18).compress(weight, full_moment(inputs))
    best = min(range(18), key=losses.__getitem__)
    assert places(result.weight == 0) == {divmod(best, 6)}
    torch.testing.assert_close(result.weight.double(), expected[best], rtol=1e-5, atol=1e-6)


def test_against_all_masks_of_a_row_the_greedy_is_never_better_and_first_exact() -> None:
    found, ratios = [], []
    for seed, removed in itertools.product(range(8), range(1, 6)):
        weight, inputs = draw(1, 6, seed=seed)
        hessian = damped64(inputs, 0.01)
        masks = itertools.combinations(range(6), 6 - removed)
        optimum = min(loss64(best_of_mask(weight[0], list(kept), hessian), weight[0], hessian) for kept in masks)
        ours = OBC(sparsity=removed / 6).compress(weight, full_moment(inputs)).weight
        assert (ours == 0).sum() == removed
        loss = loss64(ours, weight, hessian)
        assert loss >= optimum * (1 - 1e-5)
        if removed == 1:
            assert loss == pytest.approx(optimum, rel=1e-4)
        found.append(loss < optimum * 1.001)
        ratios.append(loss / optimum)
    assert sum(found) > len(found) / 2
    assert max(ratios) > 1.01, "the greedy is not the optimum; these cases do not show it"


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.8])
@pytest.mark.parametrize("seed", range(3))
def test_rows_share_the_zeros_as_the_heap_of_the_paper_would(seed: int, sparsity: float) -> None:
    weight, inputs = draw(7, 12, seed=seed)
    traces = [trace_of_row(row, damped64(inputs, 0.01)) for row in weight]
    count = round(sparsity * 84)
    pruned = OBC(sparsity=sparsity).compress(weight, full_moment(inputs)).weight == 0
    assert places(pruned) == heap_selection(traces, count)


def test_a_cheap_weight_behind_a_dear_one_waits_for_it() -> None:
    # Opposite weights on similar inputs: once the first has gone, the second costs less than it did.
    inputs = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.2, 0.0], [0.0, 0.0, 0.5]])
    weight = torch.tensor([[1.0, -1.2, 5.0], [5.0, 5.0, 1.0]])
    (order, costs), (_, other) = (trace_of_row(row, damped64(inputs, 0.0)) for row in weight)
    assert costs[1] < other[0] < costs[0] < other[1], "this case does not tell costs from their running maximum"
    for count, gone in [(1, {(1, 2)}), (2, {(1, 2), (0, order[0])}), (3, {(1, 2), (0, 0), (0, 1)})]:
        result = OBC(sparsity=count / 6, damping=0.0).compress(weight, full_moment(inputs))
        assert places(result.weight == 0) == gone


@pytest.mark.parametrize("pattern", ["2:4", "1:2", "1:3", "4:6"])
def test_groups_lose_what_explicit_inverses_choose(pattern: str) -> None:
    keep, size = map(int, pattern.split(":"))
    weight, inputs = draw(6, 12, seed=2)
    result = OBC(pattern=pattern).compress(weight, full_moment(inputs))
    hessian = damped64(inputs, 0.01)
    for row in range(6):
        order, _ = trace_of_row(weight[row], hessian, (keep, size))
        assert (result.weight[row] == 0).nonzero().flatten().tolist() == sorted(order)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("options", [{"sparsity": 0.3}, {"sparsity": 0.9}, {"pattern": "2:4"}])
def test_survivors_solve_the_normal_equations_of_the_mask(options: dict, dtype: torch.dtype) -> None:
    weight, inputs = draw(8, 40, seed=4, dtype=dtype)
    result = OBC(**options).compress(weight, full_moment(inputs)).weight
    assert result.dtype == dtype
    hessian = damped64(inputs, 0.01)
    kept = [(row != 0).nonzero().flatten().tolist() for row in result]
    expected = torch.stack([best_of_mask(row, places, hessian) for row, places in zip(weight, kept, strict=True)])
    torch.testing.assert_close(result.double(), expected, rtol=max(1e-5, torch.finfo(dtype).eps), atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"sparsity": 0.8}, {"pattern": "2:4"}])
@pytest.mark.parametrize(("rows", "columns", "tokens"), [(32, 32, 0), (24, 64, 0), (24, 64, 32), (64, 96, 0)])
def test_never_worse_than_sparsegpt(rows: int, columns: int, tokens: int, options: dict) -> None:
    for seed in range(4):
        weight, inputs = draw(rows, columns, seed=seed, tokens=tokens)
        moment, hessian = full_moment(inputs), hessian64(inputs)
        ours, theirs = (
            loss64(cls(**options).compress(weight, moment).weight, weight, hessian) for cls in (OBC, SparseGPT)
        )
        assert ours < 0.9 * theirs, seed


@examples(60)
@given(
    shape=st.tuples(st.integers(1, 6), st.integers(1, 16)),
    sparsity=st.floats(0, 1, exclude_max=True),
    tokens=st.integers(1, 20),
    dead=st.sets(st.integers(0, 15)),
    twins=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 3),
)
def test_any_layer_loses_exactly_k(
    shape: tuple[int, int], sparsity: float, tokens: int, dead: set[int], twins: bool, dtype: torch.dtype, seed: int
) -> None:
    weight, inputs = draw(*shape, seed=seed, tokens=tokens, dtype=dtype)
    rows, columns = shape
    if twins:
        inputs[:, -1], weight[:, -1] = inputs[:, 0], weight[:, 0]
    dead = {j for j in dead if j < columns}
    inputs[:, list(dead)] = 0
    result = OBC(sparsity=sparsity).compress(weight, full_moment(inputs))
    assert (result.weight == 0).sum() == round(sparsity * (rows * columns))
    is_dead = inputs.abs().sum(0) == 0
    assert (result.weight[:, is_dead] == 0).sum() == round(sparsity * (rows * int(is_dead.sum())))
    assert result.weight.isfinite().all()


def test_ties_go_row_by_row_and_in_order() -> None:
    moment = Moment(Statistic.FULL, 4, 1, torch.eye(4))
    result = OBC().compress(torch.ones(3, 4), moment)
    assert result.weight.tolist() == [[0, 0, 0, 0], [0, 0, 1, 1], [1, 1, 1, 1]]
    result = OBC(pattern="2:4").compress(torch.ones(3, 4), moment)
    assert result.weight.tolist() == [[0, 0, 1, 1]] * 3


def test_of_two_equal_columns_one_takes_over_the_other() -> None:
    _, inputs = draw(1, 5)
    inputs[:, 3] = inputs[:, 1]
    weight = torch.tensor([[1.0, 2.0, -1.0, 2.0, 1.5]])
    result = OBC(sparsity=0.2, damping=1e-4).compress(weight, full_moment(inputs)).weight[0]
    assert sorted(result[[1, 3]].tolist()) == pytest.approx([0, 4], abs=1e-2)
    torch.testing.assert_close(result[[0, 2, 4]], weight[0, [0, 2, 4]], rtol=0, atol=1e-2)


def test_dead_columns_are_pruned_by_magnitude_and_the_rest_as_without_them() -> None:
    weight, inputs = draw(6, 20)
    dead = [2, 3, 11, 19]
    live = [j for j in range(20) if j not in dead]
    inputs[:, dead] = 0
    result = OBC().compress(weight, full_moment(inputs))
    alone = OBC().compress(weight[:, live], full_moment(inputs[:, live]))
    assert torch.equal(result.weight[:, live] == 0, alone.weight == 0)
    torch.testing.assert_close(result.weight[:, live], alone.weight)
    assert torch.equal(result.weight[:, dead], Magnitude().compress(weight[:, dead], None).weight)
    assert result.dead_columns == 4


def test_in_groups_dead_columns_are_neither_erased_nor_updated() -> None:
    weight, inputs = draw(8, 16)
    inputs[:, [1, 6]] = 0
    weight[:, [1, 6]] *= 10
    result = OBC(pattern="2:4").compress(weight, full_moment(inputs))
    kept = result.weight[:, [1, 6]] != 0
    assert kept.float().mean() > 0.8
    assert torch.equal(result.weight[:, [1, 6]][kept], weight[:, [1, 6]][kept])


def test_in_groups_a_dead_column_counts_as_an_average_one() -> None:
    moment = Moment(Statistic.FULL, 4, 1, torch.tensor([1.0, 0.0, 2.0, 3.0]).diag())
    # The roots of the costs: 1, 0.85 or 1.13, 1.27, 1.56.
    weight = torch.tensor([[1.0, 0.6, 0.9, 0.9], [1.0, 0.8, 0.9, 0.9]])
    result = OBC(pattern="3:4").compress(weight, moment)
    assert (result.weight == 0).tolist() == [[False, True, False, False], [True, False, False, False]]
