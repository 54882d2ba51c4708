"""One pass over a leaf: of the same bits in C++, compiled by torch and not, and in none where nothing compiles."""

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from method_cases import draw, full_moment
from torch import Tensor

import mbs_ray.methods.columns
from mbs_ray.methods import GPTQ, SparseGPT, SparseGPTQ
from mbs_ray.methods.cpu_kernel import CpuKernel
from mbs_ray.methods.cpu_library import cpu_library
from mbs_ray.methods.factored import Factored
from mbs_ray.methods.grid import Grid
from mbs_ray.methods.kernel import Kernel, TorchKernel
from mbs_ray.methods.leaf import LEAF, Finals, LeafFactor
from tests.support.examples import examples

ROWS = 1003
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
PARTS = ({"pruned"}, {"grid"}, {"pruned", "grid"}, {"pattern"}, {"pattern", "pruned"}, {"grid of columns"})


class Solved(NamedTuple):
    changes: Tensor
    losses: Tensor
    written: Tensor
    codes: Tensor
    few: Tensor
    """The weights given as pruned, where they are."""


def in_cpp(dtype: torch.dtype) -> CpuKernel:
    library = cpu_library("kernels.cpp", dtype)
    assert library is not None
    return CpuKernel(library, dtype)


def plain(dtype: torch.dtype) -> TorchKernel:
    return TorchKernel(dtype, compiled=False)


def solved(
    kernel: Kernel,
    dtype: torch.dtype,
    parts: set[str],
    *,
    rows: int = ROWS,
    columns: int = LEAF,
    descends: bool = False,
) -> Solved:
    generator = torch.Generator().manual_seed(7)
    work = torch.randn(columns, rows, generator=generator)
    # As a part of a larger matrix, in which alone what is above the diagonal is ever read.
    # Part of a larger matrix, as it is in the factor.
    upper = (torch.randn(columns, columns + 3, generator=generator) / (2 * columns**0.5))[:, 1:-2]
    upper.diagonal().copy_(torch.linspace(0.6, 1.4, columns))
    few = torch.rand(columns, rows, generator=generator) < 0.3
    scale = (torch.rand(columns, rows, generator=generator) + 0.1).to(dtype).float()
    zero = torch.randint(0, 16, (columns, rows), generator=generator).float()
    if "grid" in parts:
        scale, zero = scale[0].expand(columns, -1), zero[0].expand(columns, -1)
    codes = torch.zeros(columns, rows, dtype=torch.uint8)
    has_grid = bool(parts & {"grid", "grid of columns"})
    finals = Finals(
        few if "pruned" in parts else None,
        (2, 4) if "pattern" in parts else None,
        Grid(scale, zero, 15, dtype) if has_grid else None,
        codes if has_grid else None,
    )
    written = torch.randn(columns, rows, generator=generator).to(dtype)
    losses = torch.ones(rows, dtype=torch.float64)
    if descends:
        kernel.descend(work, upper, finals, written)
    else:
        pivots = upper.diagonal().contiguous()
        kernel.solve(work, LeafFactor(upper, pivots.sqrt(), pivots), losses, finals, written)
    return Solved(work, losses, written, codes, few)


def same(one: Solved, other: Solved) -> bool:
    return all(map(torch.equal, one, other))


@pytest.fixture(scope="module", autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_two_of_four_stay_and_those_kept_zero_are_among_the_others() -> None:
    free = solved(plain(torch.float32), torch.float32, {"pattern"})
    assert bool(((free.written != 0).unflatten(0, (-1, 4)).sum(1) == 2).all())
    kept = solved(plain(torch.float32), torch.float32, {"pattern", "pruned"})
    assert not bool(kept.written[kept.few].any())
    zeros = torch.maximum(kept.few.unflatten(0, (-1, 4)).sum(1), torch.tensor(2))
    assert torch.equal((kept.written == 0).unflatten(0, (-1, 4)).sum(1), zeros)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("parts", PARTS, ids=lambda parts: "+".join(sorted(parts)))
def test_in_cpp_it_has_the_same_bits(dtype: torch.dtype, parts: set[str]) -> None:
    for rows, columns in ((ROWS, LEAF), (64, 128), (1, 4), (63, 60)):
        ways = (solved(kernel(dtype), dtype, parts, rows=rows, columns=columns) for kernel in (in_cpp, plain))
        assert same(*ways)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("parts", [{"pruned"}, {"grid"}, {"pruned", "grid of columns"}], ids=str)
def test_in_cpp_a_descent_has_the_same_bits(dtype: torch.dtype, parts: set[str]) -> None:
    for rows, columns in ((ROWS, LEAF), (65, 128), (1, 3)):
        ways = (
            solved(kernel(dtype), dtype, parts, rows=rows, columns=columns, descends=True) for kernel in (in_cpp, plain)
        )
        assert same(*ways)


def test_a_factor_that_lies_column_by_column_is_read_as_it_is_and_what_is_no_leaf_is_refused() -> None:
    ways, kernel = [], in_cpp(torch.float32)
    upper = torch.randn(8, 8, generator=torch.Generator().manual_seed(0)) / 4
    for factor in (upper, upper.t().clone().t()):
        work, written = torch.ones(8, 70), torch.ones(8, 70)
        losses, ones = torch.zeros(70, dtype=torch.float64), torch.ones(8)
        pruned = torch.eye(8, 70) > 0
        kernel.solve(work, LeafFactor(factor, ones, ones), losses, Finals(pruned), written)
        ways.append(written)
    assert torch.equal(*ways) and not torch.equal(ways[0], torch.ones(8, 70))
    work = torch.ones(136, 3)
    with pytest.raises(ValueError, match="136 columns"):
        kernel.descend(work, torch.eye(136), Finals(), work.clone())


def test_any_number_of_threads_gives_the_same_bits() -> None:
    ways = []
    for threads in (1, 2, 5, 100):
        torch.set_num_threads(threads)
        ways.append(solved(in_cpp(torch.float32), torch.float32, {"grid"}, columns=128))
    torch.set_num_threads(1)
    assert all(same(ways[0], other) for other in ways[1:])


@examples(60)
@given(
    columns=st.integers(1, 300),
    rows=st.integers(1, 130),
    bits=st.integers(2, 8),
    symmetric=st.booleans(),
    how=st.sampled_from(["whole", "before", "search"]),
    dtype=st.sampled_from(DTYPES),
    size=st.sampled_from([0.0, 1e-6, 1.0, 1e4]),
    seed=st.integers(0, 9),
)
def test_a_grid_fitted_in_cpp_is_as_good(
    columns: int, rows: int, bits: int, symmetric: bool, how: str, dtype: torch.dtype, size: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weights = size * torch.randn(columns, rows, generator=generator) + size * torch.randn(rows, generator=generator)
    importance = torch.rand(columns, 1, generator=generator) + 0.1
    method = GPTQ(bits=bits, symmetric=symmetric, clip_search=how == "search")
    low, high = weights.amin(0, keepdim=True), weights.amax(0, keepdim=True)
    before = (low * 0.8, high * 0.6) if how == "before" else None
    one, other = (kernel(dtype).fit(weights, importance, before, method) for kernel in (in_cpp, plain))
    # Only the order of a sum differs: another grid is chosen where two have the same error.
    errors = [((grid.values(grid.codes(weights)) - weights).square() * importance).sum(0) for grid in (one, other)]
    differ = (one.scale != other.scale) | (one.zero != other.zero)
    assert int(differ.sum()) <= (0 if how == "whole" else 2)
    torch.testing.assert_close(*errors, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    "method",
    [
        SparseGPT(),
        SparseGPT(scope="row", keep_zeros=True),
        SparseGPT(pattern="4:8"),
        GPTQ(bits=3, group_size=64),
        GPTQ(bits=4, activation_order=True, group_size=32),
        GPTQ(bits=3, group_size=256, clip_search=True, refine=1),
        SparseGPTQ(pattern="2:4", bits=4, group_size=128),
        SparseGPT(pattern="2:4", refine=1),
    ],
    ids=lambda method: method.label,
)
def test_a_linear_solved_in_cpp_is_the_linear_solved_by_torch(
    method: Factored, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight, inputs = draw(48, 1024, tokens=2048)
    moment = full_moment(inputs)
    one = method.compress(weight, moment)
    monkeypatch.setattr(mbs_ray.methods.columns, "kernel_for", lambda work, dtype: plain(dtype))
    other = method.compress(weight, moment)
    assert one.loss == pytest.approx(other.loss, rel=1e-3)
    assert float(((one.weight == 0) != (other.weight == 0)).float().mean()) < 1e-3
    if one.codes is not None and other.codes is not None:
        assert float((one.codes != other.codes).float().mean()) < 2e-3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "parts", "descends"),
    [
        (torch.bfloat16, {"pruned"}, False),
        (torch.float16, {"pruned", "grid"}, False),
        (torch.float32, {"pattern", "pruned"}, False),
        (torch.bfloat16, {"pruned", "grid"}, True),
    ],
    ids=str,
)
def test_compiled_by_torch_it_has_the_same_bits(dtype: torch.dtype, parts: set[str], descends: bool) -> None:
    for rows in (ROWS, 64):
        ways = (
            solved(TorchKernel(dtype, compiled=compiled), dtype, parts, rows=rows, descends=descends)
            for compiled in (True, False)
        )
        assert same(*ways)


def test_where_nothing_compiles_one_line_says_so_and_columns_are_solved_all_the_same() -> None:
    program = (
        "import torch; from mbs_ray.methods import GPTQ, Moment, Statistic\n"
        "moment = Moment.zeros(64, Statistic.FULL); moment.add(torch.randn(9, 64))\n"
        "for _ in range(2): print(GPTQ(bits=8, group_size=64).compress(torch.randn(4, 64), moment).sparsity < 0.1)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True, text=True, env={**os.environ, "CXX": "no-such-compiler"}, timeout=300,
    )  # fmt: skip
    assert done.stdout.split() == ["True", "True"], done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("columns are solved without a kernel of their own"), done.stderr
