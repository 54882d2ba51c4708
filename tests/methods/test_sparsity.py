"""Masks of exactly k, ties by index, and the fields of a sparsity pattern."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mbs_ray.errors import InputError
from mbs_ray.methods import Magnitude, SparseGPT, Wanda
from mbs_ray.methods.sparsity import lowest, lowest_of_all, lowest_of_groups
from tests.support.examples import examples

PRUNING = [Magnitude, Wanda, SparseGPT]


@examples(200)
@given(scores=st.lists(st.integers(0, 3), min_size=1, max_size=20), data=st.data())
def test_exactly_k_lowest_are_chosen_and_the_first_of_equals(scores: list[int], data: st.DataObject) -> None:
    count = data.draw(st.integers(0, len(scores)))
    expected = sorted(range(len(scores)), key=lambda i: (scores[i], i))[:count]
    given = torch.tensor(scores, dtype=torch.float32)
    assert lowest(given, count).nonzero().flatten().tolist() == sorted(expected)
    # The same in whatever way the matrix lies in memory.
    for matrix in (given[None], given[:, None], given[:, None].expand(-1, 3)[:, 1:2]):
        assert lowest_of_all(matrix, count).flatten().nonzero().flatten().tolist() == sorted(expected)


@examples(100)
@given(
    rows=st.integers(1, 6),
    columns=st.integers(1, 6),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    transposed=st.booleans(),
    data=st.data(),
)
def test_of_a_matrix_exactly_k_are_chosen_row_by_row(
    rows: int, columns: int, dtype: torch.dtype, transposed: bool, data: st.DataObject
) -> None:
    numbers = data.draw(st.lists(st.integers(0, 3), min_size=rows * columns, max_size=rows * columns))
    scores = torch.tensor(numbers, dtype=dtype).view(rows, columns)
    if transposed:
        scores = scores.t().contiguous().t()
    count = data.draw(st.integers(0, rows * columns))
    expected = sorted(range(rows * columns), key=lambda i: (numbers[i], i))[:count]
    assert lowest_of_all(scores, count).reshape(-1).nonzero().flatten().tolist() == sorted(expected)
    count = data.draw(st.integers(0, columns))
    each = torch.stack([lowest(row, count) for row in scores])
    assert torch.equal(lowest(scores, count), each) and bool((each.sum(1) == count).all())


def test_rows_are_chosen_from_independently() -> None:
    scores = torch.tensor([[3.0, 1.0, 2.0], [5.0, 5.0, 5.0]])
    assert lowest(scores, 2).tolist() == [[False, True, True], [True, True, False]]
    groups = torch.tensor([[1.0, 2.0, 2.0, 1.0]])
    assert lowest_of_groups(groups, 1, 2).tolist() == [[True, False, False, True]]


@pytest.mark.parametrize("cls", PRUNING)
def test_a_pattern_gives_the_sparsity(cls: type) -> None:
    assert cls().sparsity == 0.5
    assert cls(pattern="2:4").sparsity == 0.5
    assert cls(pattern="1:4").sparsity == 0.75
    assert cls(pattern="2:3", sparsity=1 / 3).sparsity == 1 - 2 / 3
    assert cls(sparsity=0).sparsity == 0.0


@pytest.mark.parametrize("cls", PRUNING)
def test_labels_are_short(cls: type) -> None:
    assert cls().label == f"{cls.name}-50"
    assert cls(sparsity=0.625).label == f"{cls.name}-62.5"
    assert cls(pattern="2:4").label == f"{cls.name}-2:4"


@pytest.mark.parametrize("cls", PRUNING)
@pytest.mark.parametrize("sparsity", [50, 1, 1.0, -0.1, float("nan"), "0.5", True])
def test_a_sparsity_that_is_no_share_is_named(cls: type, sparsity: object) -> None:
    with pytest.raises(InputError, match=f"{cls.name}: sparsity must be .* got"):
        cls(sparsity=sparsity)


# 124 is what YAML 1.1 makes of an unquoted 2:4.
@pytest.mark.parametrize("pattern", ["4:2", "4:4", "0:4", "2;4", "2:4 ", "structured", 124, None])
@pytest.mark.parametrize("cls", PRUNING)
def test_a_pattern_that_is_none_is_named(cls: type, pattern: object) -> None:
    with pytest.raises(InputError, match=f"{cls.name}: pattern must be .*quotes.* got"):
        cls(pattern=pattern)


@pytest.mark.parametrize("cls", PRUNING)
def test_a_sparsity_that_contradicts_the_pattern_is_an_error(cls: type) -> None:
    with pytest.raises(InputError, match=r"sparsity 0\.5 contradicts pattern '1:4', which gives 0\.75"):
        cls(pattern="1:4", sparsity=0.5)


@pytest.mark.parametrize("cls", PRUNING)
def test_a_pattern_that_does_not_divide_the_columns_names_the_linear(cls: type) -> None:
    cls(pattern="2:4").check(3, 8, "h.0.dense")
    cls().check(3, 7, "h.0.dense")
    with pytest.raises(InputError, match=r"h\.0\.dense: pattern 2:4 needs columns in multiples of 4, .* 10"):
        cls(pattern="2:4").check(3, 10, "h.0.dense")
    with pytest.raises(InputError, match="multiples of 4"):
        cls(pattern="2:4").compress(torch.ones(3, 10), None)


@examples(60)
@given(
    group=st.sampled_from([2, 4, 8, 16, 17, 32]),
    data=st.data(),
    values=st.integers(1, 6),
    seed=st.integers(0, 5),
)
def test_groups_lose_their_lowest_the_first_of_equals_whatever_their_length(
    group: int, data: st.DataObject, values: int, seed: int
) -> None:
    keep = data.draw(st.integers(1, group - 1))
    scores = torch.randint(0, values, (3, 2 * group), generator=torch.Generator().manual_seed(seed)).float()
    mask = lowest_of_groups(scores, keep, group)
    for row in range(3):
        for start in (0, group):
            order = sorted(range(group), key=lambda i, row=row, start=start: (float(scores[row, start + i]), i))
            expected = {start + i for i in order[: group - keep]}
            assert set((mask[row, start : start + group]).nonzero().flatten().add(start).tolist()) == expected
