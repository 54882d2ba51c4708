"""What is compiled for a CPU is kept for later processes, in a folder that only its user writes to."""

import os
from pathlib import Path

import pytest
import torch

from mbs_ray.methods.cpu_library import cpu_library


class Compiler:
    """A compiler that counts its calls, and a folder for what it compiles."""

    def __init__(self, folder: Path) -> None:
        self.kept = folder / "cache" / "mbs_ray"
        self._calls = folder / "calls"
        self.command = folder / "c++"
        self.command.write_text(f'#!/bin/sh\necho >> "{self._calls}"\nexec g++ "$@"\n')
        self.command.chmod(0o755)

    def load(self) -> bool:
        """Load as another process would; return whether that compiled anything."""
        before = self._count()
        library = cpu_library.__wrapped__("kernels.cpp", torch.float32)
        assert library is not None and library.solve_leaf
        return self._count() > before

    def _count(self) -> int:
        return self._calls.read_text().count("\n") if self._calls.exists() else 0


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Compiler:
    made = Compiler(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("CXX", str(made.command))
    return made


def test_it_is_compiled_once(compiler: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    assert compiler.load() and not compiler.load()
    assert compiler.kept.stat().st_mode & 0o777 == 0o700
    monkeypatch.setenv("CXX", f"{compiler.command} -g0")
    assert compiler.load(), "another command gives another library"
    assert len(list(compiler.kept.iterdir())) == 2


@pytest.mark.parametrize("share", [0, 0.5, 1])
def test_what_is_not_whole_is_compiled_again(compiler: Compiler, share: float) -> None:
    assert compiler.load()
    (kept,) = compiler.kept.iterdir()
    content = kept.read_bytes()
    kept.unlink()  # this process has it loaded
    kept.write_bytes(content[: int(share * (len(content) - 1))])
    kept.chmod(0o700)
    assert compiler.load() and not compiler.load()


def test_what_others_may_have_written_is_not_loaded(compiler: Compiler) -> None:
    assert compiler.load()
    (kept,) = compiler.kept.iterdir()
    kept.chmod(0o720)
    assert compiler.load() and not compiler.load()


def test_another_compiler_of_the_same_name_makes_another(compiler: Compiler) -> None:
    assert compiler.load()
    compiler.command.write_text(compiler.command.read_text() + "\n")
    assert compiler.load() and len(list(compiler.kept.iterdir())) == 2


def test_a_folder_that_others_may_write_to_is_not_used(compiler: Compiler) -> None:
    compiler.kept.mkdir(parents=True)
    compiler.kept.chmod(0o777)
    assert compiler.load() and compiler.load()
    assert not list(compiler.kept.iterdir())


def test_without_a_folder_each_process_compiles(
    compiler: Compiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert compiler.load() and compiler.load()


def test_a_relative_folder_is_not_that_of_a_cache(compiler: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", os.path.relpath(compiler.kept.parent))
    monkeypatch.setenv("HOME", str(compiler.kept.parent.parent))
    assert compiler.load()
    assert not compiler.kept.exists() and list((compiler.kept.parent.parent / ".cache" / "mbs_ray").iterdir())


@pytest.mark.parametrize("command", ["no-such-compiler", "'", " "])
def test_no_compiler_is_said_before_anything_is_kept(
    compiler: Compiler, command: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CXX", command)
    assert cpu_library.__wrapped__("kernels.cpp", torch.float32) is None
    assert len(caplog.messages) == 1 and "columns are solved without a kernel of their own" in caplog.text
    assert not compiler.kept.exists()
