"""A JSON file of our own that is cut or damaged is named in one line with what to do about it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mbs_ray.compression.block_report import BlockReport, block_report_file, read_block_reports, write_block_report
from mbs_ray.compression.stored_moments import StoredMoments
from mbs_ray.errors import InputError
from mbs_ray.files import read_json, read_json_if_there
from mbs_ray.model.block_files import block_file
from mbs_ray.model.checkpoint import Checkpoint
from mbs_ray.model.fingerprint import fingerprint
from mbs_ray.run.directory import RunDirectory

DAMAGE = {
    "empty": b"",
    "cut": b'{"label": "r", "evalua',
    "zeros": bytes(64),
    "no utf-8": b'{"label": "\xff\xfe"}',
    "another file's": b'{"somebody": "else\'s"}',
    "a number": b"7",
    "deep": b"[" * 100_000,
}
READERS: dict[str, Callable[[RunDirectory], object]] = {
    "signature.json": RunDirectory.stored_signature,
    "run.json": RunDirectory.facts,
    "result.json": RunDirectory.result,
    "card.json": RunDirectory.card,
    "tracking.json": RunDirectory.facts,
    "allocation.json": RunDirectory.allocation,
    "weights.json": RunDirectory.weights,
}
#: Mappings that any names stand in.
FREE = ("signature.json", "allocation.json", "weights.json")


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_of_a_run_is_named_with_what_to_do(name: str, damage: str, tmp_path: Path) -> None:
    if damage == "another file's" and name in FREE:
        pytest.skip("any names may stand there")
    (tmp_path / name).write_bytes(DAMAGE[damage])
    with pytest.raises(InputError, match=rf"{name}: cut or damaged \(.*\); remove it, and .*give the mbs") as error:
        READERS[name](RunDirectory(tmp_path))
    assert "\n" not in str(error.value) and len(str(error.value)) < 600 + len(str(tmp_path))


def test_a_run_without_files_is_no_damaged_one(tmp_path: Path) -> None:
    found = [read(RunDirectory(tmp_path)) for read in READERS.values()]
    assert found == [None, None, None, None, None, {}, {}]
    assert read_json_if_there(tmp_path / "none.json") is None
    with pytest.raises(InputError, match=r"none\.json: cannot be read \(No such file"):
        read_json(tmp_path / "none.json")


def test_a_cut_report_of_a_block_is_named(tmp_path: Path) -> None:
    for block in (0, 1):
        write_block_report(tmp_path, BlockReport(block))
    assert [one.block for one in read_block_reports(tmp_path)] == [0, 1]
    path = block_report_file(tmp_path, 1)
    path.write_text(json.dumps({"block": 1}))
    with pytest.raises(InputError, match=r"block-00001\.json: cut or damaged \(KeyError: 'linears'\)"):
        read_block_reports(tmp_path)


def test_cut_moments_are_named(tmp_path: Path) -> None:
    (tmp_path / block_file(0)).write_bytes(b"\x10\0\0\0\0\0\0\0{")
    with pytest.raises(InputError, match=rf"{block_file(0)}: cut or damaged"):
        StoredMoments(tmp_path, 0)


def test_a_cut_fingerprint_is_named_and_found_again_once_it_is_removed(bloom: Path, tmp_path: Path) -> None:
    checkpoint = Checkpoint(bloom)
    found = fingerprint(checkpoint, (), tmp_path)
    (stored,) = tmp_path.glob("*.json")
    stored.write_bytes(stored.read_bytes()[:20])
    with pytest.raises(InputError, match=r"\.json: cut or damaged .*; remove it, what it holds is found again"):
        fingerprint(checkpoint, (), tmp_path)
    stored.unlink()
    assert fingerprint(checkpoint, (), tmp_path) == found
