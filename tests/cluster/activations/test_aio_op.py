"""Building async_io: what a killed build left does not stop the next one, and a missing package is named."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mbs_ray.cluster.activations.aio_op import OPS, clear_locks, is_built
from mbs_ray.errors import InputError


def test_built_is_what_torch_keeps_of_both_ops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    for op in OPS:
        assert not is_built()
        (tmp_path / op).mkdir(exist_ok=True)
        (tmp_path / op / f"{op}.so").touch()
    assert is_built()


def test_locks_of_our_own_killed_build_are_removed(tmp_path: Path) -> None:
    for op in OPS:
        (tmp_path / op).mkdir()
        (tmp_path / op / "lock").touch()
    clear_locks(tmp_path, killed=True, wait_seconds=0)
    assert not list(tmp_path.rglob("lock"))


def test_a_lock_of_another_program_is_named_and_left(tmp_path: Path) -> None:
    (tmp_path / "async_io").mkdir()
    lock = tmp_path / "async_io" / "lock"
    lock.touch()
    with pytest.raises(InputError, match=f"{lock}: another program builds this, or was killed"):
        clear_locks(tmp_path, killed=False, wait_seconds=0.2)
    assert lock.exists()


@pytest.mark.slow
def test_without_compiler_and_libraries_the_packages_are_named(tmp_path: Path) -> None:
    environment = {**os.environ, "TORCH_EXTENSIONS_DIR": str(tmp_path), "PATH": "/nowhere", "CC": "/nowhere/cc"}
    command = [sys.executable, "-m", "mbs_ray.cluster.activations.aio_op"]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert ended.returncode == 1
    assert "install libaio-dev, ninja-build and g++" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.slow
def test_another_ninja_on_the_path_does_not_build_it_again(aio: Any, tmp_path: Path) -> None:
    other = tmp_path / "ninja"
    other.write_text("#!/bin/sh\nexit 1\n")
    other.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    command = [sys.executable, "-m", "mbs_ray.cluster.activations.aio_op"]
    subprocess.run(command, check=True, capture_output=True, env=environment, timeout=120)
