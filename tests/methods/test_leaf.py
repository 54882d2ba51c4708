"""One pass over a leaf: of the same bits compiled and not, and not compiled where nothing compiles."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from mbs_ray.methods.grid import Grid
from mbs_ray.methods.leaf import LEAF, Finals, LeafFactor, descend_leaf, solve_leaf

ROWS = 1003


class Solved(NamedTuple):
    changes: Tensor
    losses: Tensor
    written: Tensor
    codes: Tensor
    few: Tensor
    """The weights given as pruned, where they are."""


def solved(dtype: torch.dtype, parts: set[str], *, compiled: bool, rows: int = ROWS, descends: bool = False) -> Solved:
    generator = torch.Generator().manual_seed(7)
    work = torch.randn(LEAF, rows, generator=generator)
    upper = (torch.randn(LEAF, LEAF, generator=generator) / 4).triu(1)
    upper.diagonal().copy_(torch.linspace(0.6, 1.4, LEAF))
    few = torch.rand(LEAF, rows, generator=generator) < 0.3
    scale = (torch.rand(rows, generator=generator) + 0.1).to(dtype).float().expand(LEAF, -1)
    zero = torch.randint(0, 16, (rows,), generator=generator).float().expand(LEAF, -1)
    codes = torch.zeros(LEAF, rows, dtype=torch.uint8)
    finals = Finals(
        few if "pruned" in parts else None,
        (2, 4) if "pattern" in parts else None,
        Grid(scale, zero, 15, dtype) if "grid" in parts else None,
        codes if "grid" in parts else None,
    )
    written = torch.randn(LEAF, rows, generator=generator).to(dtype)
    losses = torch.ones(rows, dtype=torch.float64)
    if descends:
        descend_leaf(work, upper, finals, written, compiled=compiled)
    else:
        pivots = upper.diagonal().contiguous()
        solve_leaf(work, LeafFactor(upper, pivots.sqrt(), pivots), losses, finals, written, compiled=compiled)
    return Solved(work, losses, written, codes, few)


@pytest.fixture(scope="module", autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_two_of_four_stay_and_those_kept_zero_are_among_the_others() -> None:
    free = solved(torch.float32, {"pattern"}, compiled=False)
    assert bool(((free.written != 0).unflatten(0, (-1, 4)).sum(1) == 2).all())
    kept = solved(torch.float32, {"pattern", "pruned"}, compiled=False)
    assert not bool(kept.written[kept.few].any())
    zeros = torch.maximum(kept.few.unflatten(0, (-1, 4)).sum(1), torch.tensor(2))
    assert torch.equal((kept.written == 0).unflatten(0, (-1, 4)).sum(1), zeros)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "parts"),
    [
        (torch.bfloat16, {"pruned"}),
        (torch.float16, {"pruned", "grid"}),
        (torch.bfloat16, {"grid"}),
        (torch.float32, {"pattern", "pruned"}),
    ],
    ids=str,
)
def test_compiled_it_has_the_same_bits(dtype: torch.dtype, parts: set[str]) -> None:
    for rows in (ROWS, 64):
        kernel, plain = (solved(dtype, parts, compiled=compiled, rows=rows) for compiled in (True, False))
        assert all(torch.equal(one, other) for one, other in zip(kernel, plain, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "parts"), [(torch.bfloat16, {"pruned"}), (torch.float32, {"grid"}), (torch.float16, {"pruned", "grid"})]
)
def test_compiled_a_descent_has_the_same_bits(dtype: torch.dtype, parts: set[str]) -> None:
    kernel, plain = (solved(dtype, parts, compiled=compiled, descends=True) for compiled in (True, False))
    assert all(torch.equal(one, other) for one, other in zip(kernel, plain, strict=True))


@pytest.mark.slow
def test_where_nothing_compiles_one_line_says_so_and_columns_are_solved_all_the_same(tmp_path: Path) -> None:
    program = (
        "import torch; from mbs_ray.methods import GPTQ, Moment, Statistic\n"
        "from mbs_ray.methods.leaf import LEAST_COLUMNS as columns\n"
        "moment = Moment.zeros(columns, Statistic.FULL); moment.add(torch.randn(9, columns))\n"
        "for _ in range(2): print(GPTQ(bits=8, group_size=64).compress(torch.randn(4, columns), moment).sparsity < 0.1)"
    )
    surroundings = {**os.environ, "CXX": "no-such-compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=surroundings, timeout=300
    )
    assert done.stdout.split() == ["True", "True"], done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("columns are solved without a kernel of their own"), done.stderr
