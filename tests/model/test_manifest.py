"""The manifest of a checkpoint tells a whole copy from a damaged one."""

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from mbs_ray.errors import InputError
from mbs_ray.model.block_files import record_digest, recorded_digest
from mbs_ray.model.manifest import MANIFEST, Verdict, verify, write_manifest


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "model-00001-of-00001.safetensors").write_bytes(bytes(range(256)) * 5000)
    (folder / "config.json").write_text("{}")
    write_manifest(folder)
    return folder


def test_it_holds_size_and_sha256_of_every_file(checkpoint: Path) -> None:
    files = json.loads((checkpoint / MANIFEST).read_text())["files"]
    assert files["config.json"] == {"bytes": 2, "sha256": hashlib.sha256(b"{}").hexdigest()}
    weights = bytes(range(256)) * 5000
    assert files["model-00001-of-00001.safetensors"]["sha256"] == hashlib.sha256(weights).hexdigest()
    assert len(files) == 2


def test_what_its_writer_hashed_is_not_read_again(checkpoint: Path) -> None:
    weights = checkpoint / "model-00001-of-00001.safetensors"
    assert recorded_digest(weights) is None
    record_digest(weights)
    recorded = weights.with_suffix(".sha256")
    check = ["sha256sum", "--check", "--strict", recorded.name]
    assert subprocess.run(check, cwd=checkpoint, capture_output=True, text=True).stdout == f"{weights.name}: OK\n"
    assert recorded_digest(weights) == hashlib.sha256(weights.read_bytes()).hexdigest()
    # Of another file in its place, and of half a record, nothing is known.
    os.utime(weights, ns=(0, recorded.stat().st_mtime_ns + 1))
    assert recorded_digest(weights) is None
    os.utime(weights, ns=(0, 0))
    recorded.write_text("abc")
    assert recorded_digest(weights) is None
    recorded.unlink()
    write_manifest(checkpoint, {weights.name: "f" * 64})
    files = json.loads((checkpoint / MANIFEST).read_text())["files"]
    assert files[weights.name] == {"bytes": 1_280_000, "sha256": "f" * 64} and len(files) == 2


def flip(folder: Path) -> None:
    path = folder / "model-00001-of-00001.safetensors"
    content = bytearray(path.read_bytes())
    content[700_000] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (flip, "model-00001-of-00001.safetensors: other content"),
        (lambda folder: (folder / "config.json").unlink(), "config.json: missing"),
        (lambda folder: (folder / "config.json").write_text("{} "), "config.json: 3 bytes instead of 2"),
        (
            lambda folder: (folder / "model.safetensors").touch(),
            "model.safetensors: not in the manifest, but would be loaded in the place of the shards",
        ),
    ],
)
def test_what_is_wrong_is_said_of_every_file(checkpoint: Path, harm: Callable[[Path], object], said: str) -> None:
    copy = checkpoint.with_name("copy")
    shutil.copytree(checkpoint, copy)
    assert verify(copy) == Verdict(2, [], [])
    harm(copy)
    assert verify(copy) == Verdict(2, [said], [])


def test_files_that_a_hub_or_a_desktop_leaves_beside_do_no_harm(checkpoint: Path) -> None:
    for name in (".gitattributes", ".DS_Store", "notes.txt"):
        (checkpoint / name).touch()
    (checkpoint / ".git").mkdir()
    assert verify(checkpoint) == Verdict(2, [], [".DS_Store", ".gitattributes", "notes.txt"])


def test_a_manifest_leads_to_no_other_folder(checkpoint: Path) -> None:
    (checkpoint.parent / "secret").write_text("x")
    content = json.loads((checkpoint / MANIFEST).read_text())
    content["files"]["../secret"] = {"bytes": 1, "sha256": hashlib.sha256(b"x").hexdigest()}
    (checkpoint / MANIFEST).write_text(json.dumps(content))
    assert verify(checkpoint).wrong == ["../secret: the manifest names a file of another folder"]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"files": {"a": 1}}'])
def test_no_manifest_is_a_clear_error(tmp_path: Path, content: str) -> None:
    with pytest.raises(InputError, match=r"manifest\.json: cannot be read"):
        verify(tmp_path)
    (tmp_path / MANIFEST).write_text(content)
    with pytest.raises(InputError, match="not a manifest, or a damaged one"):
        verify(tmp_path)
