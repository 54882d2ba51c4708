"""The column loop: updates on time for every unit, the loss it leaves behind, and the buffers it holds."""

import weakref
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from method_cases import draw, full_moment, hessian64
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mbs_ray.methods import GPTQ, SparseGPT, SparseGPTQ
from mbs_ray.methods.columns import Columns
from mbs_ray.methods.factor import HessianFactor, hessian_factor
from mbs_ray.methods.grid import Grid
from mbs_ray.methods.leaf import LEAF, Finals
from mbs_ray.methods.obs import solve_columns
from tests.support.examples import examples


@examples(80)
@given(
    columns=st.integers(1, 150),
    smaller=st.integers(1, 40),
    times=st.integers(1, 4),
    both=st.booleans(),
    leaf=st.sampled_from([1, 3, LEAF, 16]),
    seed=st.integers(0, 3),
)
def test_every_unit_is_up_to_date_when_it_begins(
    columns: int, smaller: int, times: int, both: bool, leaf: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(columns, 3, generator=generator)
    unit_upper = (torch.randn(columns, columns, generator=generator) / columns).triu(1) + torch.eye(columns)
    pivots = torch.rand(columns, generator=generator) + 0.5
    pruned = torch.rand(columns, 3, generator=generator) < 0.6
    units = [smaller * times, smaller] if both else [smaller]
    # Frantar's form in float64, every update at once: H⁻¹ = UᵀU of the columns that are left, U = P^-½ S⁻¹.
    upper = torch.linalg.inv(unit_upper.double()) / pivots.double().sqrt()[:, None]
    eager, states, loss = weight.double().clone(), [], 0.0
    for j in range(columns):
        states.append(eager.clone())
        error = eager[j].where(pruned[j], torch.zeros(())) / upper[j, j].double()
        loss += float(error.square().sum())
        eager[j:] -= torch.outer(upper[j, j:].double(), error)
    dead = torch.zeros(columns, dtype=torch.bool)
    stored = unit_upper + torch.full_like(unit_upper, float("nan")).tril()  # what is never to be read
    solved = Columns.of(weight.t(), HessianFactor(stored, pivots, dead, 0.0, torch.ones(())))
    asked = 0

    def finals(start: int, stop: int) -> Finals:
        nonlocal asked
        assert start == asked < stop <= start + leaf
        asked = stop
        for unit in (1, *units):
            assert start // unit == (stop - 1) // unit or unit == 1
            if start % unit == 0:
                own = slice(start, start + unit)
                torch.testing.assert_close(solved.updated(own).double(), states[start][own], rtol=1e-4, atol=1e-4)
        return Finals(pruned[start:stop])

    damped = solve_columns(solved, units, finals, leaf=leaf)
    assert asked == columns
    assert float(damped) == pytest.approx(loss, rel=1e-4)
    expected = torch.stack([state[j] for j, state in enumerate(states)]).where(~pruned, torch.zeros(()))
    torch.testing.assert_close(solved.written.double(), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(solved.work, solved.written - weight)


@pytest.mark.parametrize("dead", [[], [3, 50]])
def test_the_changes_left_behind_and_their_loss(dead: list[int]) -> None:
    weight, inputs = draw(7, 90)
    inputs[:, dead] = 0
    factor = hessian_factor(full_moment(inputs), 0.01, "linear")
    columns = Columns.of(weight, factor)

    def whole_numbers(start: int, stop: int) -> Finals:
        shape = stop - start, 7
        return Finals(grid=Grid(torch.ones(shape), torch.full(shape, 100.0), 255, torch.float32))

    damped = solve_columns(columns, [], whole_numbers)
    assert torch.equal(columns.written, columns.written.round())
    assert torch.equal(columns.work, columns.written - weight.t())
    change = columns.work.t().double()
    change[:, dead] = 0
    live = [column for column in range(90) if column not in dead]
    mean = hessian64(inputs).diagonal()[live].mean()
    hessian = hessian64(inputs) / mean + 0.01 * torch.eye(90)
    assert float(damped) == pytest.approx(float((change @ hessian * change).sum()), rel=1e-4)


class LargestSum(TorchDispatchMode):
    """Follows the memory of all tensors made inside, and remembers the most that lived at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.most = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._follow(leaf.untyped_storage())
        return result

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return
        self._seen.add(key)
        self.alive += size
        self.most = max(self.most, self.alive)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.alive -= size


@pytest.mark.parametrize("by_activation", [False, True])
def test_a_factor_never_needs_more_than_two_buffers_and_a_bit_with_the_moment(by_activation: bool) -> None:
    columns = 2048
    _, inputs = draw(1, columns, tokens=columns)
    moment = full_moment(inputs)
    with LargestSum() as memory:
        factor = hessian_factor(moment, 0.01, "linear", by_activation=by_activation)
    buffer = 4 * columns**2
    # The moment is counted: views of it are made inside.
    assert 2 * buffer <= memory.most < 2.3 * buffer
    assert factor.upper.untyped_storage().nbytes() == buffer


@pytest.mark.parametrize(
    "method",
    [
        SparseGPT(scope="row"),
        SparseGPT(pattern="2:4"),
        GPTQ(bits=3),
        GPTQ(activation_order=True),
        SparseGPTQ(scope="row"),
    ],
    ids=lambda method: method.label,
)
def test_slices_of_rows_with_one_factor_are_the_whole(method: Any) -> None:
    weight, inputs = draw(24, 64)
    moment = full_moment(inputs)
    factor = method.prepare(moment)
    whole = method.compress(weight, moment)
    parts = [method.compress(rows, moment, factor=factor) for rows in weight.split(7)]
    torch.testing.assert_close(torch.cat([part.weight for part in parts]), whole.weight, rtol=1e-4, atol=1e-5)
    assert sum(part.loss for part in parts) == pytest.approx(whole.loss, rel=1e-4)
