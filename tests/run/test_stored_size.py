"""Bits per weight of a run, held against the tensors that are really packed."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mbs_ray.compression.block_report import BlockReport, LinearReport, write_block_report
from mbs_ray.methods import Amounts, build_method, method_spec
from mbs_ray.model.packed import IntegerScheme, pack_linear
from mbs_ray.run.directory import RunDirectory
from mbs_ray.run.stored_size import StoredSize, stored_size
from tests.run.test_card import FACTS

SHAPES = {"narrow": (40, 96), "wide": (24, 160)}


def run(folder: Path, method: dict[str, Any], sparsity: float = 0.0, budget: Amounts | None = None) -> RunDirectory:
    directory = RunDirectory(folder)
    directory.blocks.mkdir(parents=True)
    for block in range(2):
        linears = [
            LinearReport(name, rows, columns, 1, None, None, sparsity, 0.0, 0, 0.0)
            for name, (rows, columns) in SHAPES.items()
        ]
        write_block_report(directory.blocks, BlockReport(block, linears))
    dealt = None if budget is None else {"rule": "increase", "mean": 3.0, "amounts": budget.plain()}
    directory.keep_card(replace(FACTS, method=method_spec(build_method(method)), budget=dealt))
    return directory


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", [None, 32])
def test_rounded_linears_take_what_is_packed(
    tmp_path: Path, bits: int, symmetric: bool, group_size: int | None
) -> None:
    scheme = IntegerScheme(bits, group_size, symmetric)
    taken, weights = 0, 0
    for rows, columns in SHAPES.values():
        groups = columns // (group_size or columns)
        codes = torch.randint(2**bits, (rows, columns))
        zeros = torch.full((rows, groups), 2 ** (bits - 1))
        packed = pack_linear(codes, torch.ones(rows, groups, dtype=torch.bfloat16), zeros, scheme)
        del packed["weight_shape"]
        taken += sum(8 * one.numel() * one.element_size() for one in packed.values())
        weights += rows * columns
    method = {"name": "gptq", "bits": bits, "symmetric": symmetric, "group_size": group_size}
    assert stored_size(run(tmp_path, method)) == StoredSize(pytest.approx(taken / weights), None)


def test_zeros_are_stored_or_marked_by_a_bit(tmp_path: Path) -> None:
    half = stored_size(run(tmp_path / "half", {"name": "wanda", "sparsity": 0.5}, sparsity=0.5))
    assert half == StoredSize(16.0, 9.0) and half.least == 9.0
    pattern = stored_size(run(tmp_path / "pattern", {"name": "magnitude", "pattern": "2:4"}, sparsity=0.5))
    assert pattern == half
    # Hardly any zeros are not worth a mask.
    few = stored_size(run(tmp_path / "few", {"name": "wanda", "sparsity": 0.03125}, sparsity=0.03125))
    assert few == StoredSize(16.0, 16.5) and few.least == 16.0


def test_pruned_and_rounded_linears_keep_their_scales_beside_the_mask(tmp_path: Path) -> None:
    method = {"name": "sparsegpt+gptq", "sparsity": 0.5, "bits": 4, "group_size": 32, "symmetric": True}
    size = stored_size(run(tmp_path, method, sparsity=0.5))
    assert size == StoredSize(pytest.approx(4.5), pytest.approx(1 + 2 + 0.5))


def test_a_budget_s_bits_are_counted_linear_by_linear(tmp_path: Path) -> None:
    amounts = Amounts("bits", {block: {"narrow": 2.0, "wide": 4.0} for block in range(2)})
    size = stored_size(run(tmp_path, {"name": "rtn", "bits": 3, "symmetric": True, "group_size": 32}, budget=amounts))
    assert size is not None and size.stored == pytest.approx(3.5)


def test_without_reports_or_card_nothing_is_known(tmp_path: Path) -> None:
    directory = run(tmp_path, {"name": "wanda"})
    (directory.path / "card.json").unlink()
    assert stored_size(directory) is None
    assert stored_size(RunDirectory(tmp_path / "nowhere")) is None
