"""Files and folders appear whole or not at all: writers that fail, are killed, or write the same file at once."""

import ast
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import torch

from mbs_ray.compression.block_report import BlockReport, read_block_reports, write_block_report
from mbs_ray.files import UNFINISHED, appearing, appearing_first, appearing_folder, machine, write_json
from mbs_ray.model.block_files import block_file, read_block, write_block
from mbs_ray.run.directory import RunDirectory
from mbs_ray.text.corpus import FolderCorpus
from mbs_ray.text.file_facts import FactsCache
from mbs_ray.text.footers import FooterReader

REPOSITORY = Path(__file__).parents[1]


def run(program: str, *arguments: object) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", program, *map(str, arguments)], cwd=REPOSITORY)


def leave_killed(path: Path, *, folder: bool = False) -> Path:
    """Have a process of its own killed while it writes ``path``; what it left beside it."""
    write, what = ("appearing_folder", "unfinished / 'part'") if folder else ("appearing", "unfinished")
    program = (
        "import os, pathlib, signal, sys\n"
        f"from mbs_ray.files import {write}\n"
        f"with {write}(pathlib.Path(sys.argv[1])) as unfinished:\n"
        f"    ({what}).write_text('{{')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    before = set(path.parent.iterdir()) if path.parent.is_dir() else set()
    assert run(program, path).wait(60) == -signal.SIGKILL
    (left,) = set(path.parent.iterdir()) - before
    return left


@contextmanager
def umask(mode: int) -> Iterator[None]:
    before = os.umask(mode)
    try:
        yield
    finally:
        os.umask(before)


def test_a_file_and_its_folder_appear_when_the_writer_is_done_and_not_before(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "a.json"
    with appearing(path) as unfinished:
        unfinished.write_text("new")
        assert not path.exists() and unfinished.parent == path.parent
    assert path.read_text() == "new" and [one.name for one in path.parent.iterdir()] == ["a.json"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("begun", [False, True])
def test_a_writer_that_fails_leaves_the_file_before_and_nothing_else(
    tmp_path: Path, error: type[BaseException], begun: bool
) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    content = path.read_bytes()
    with pytest.raises(error), appearing(path) as unfinished:
        if begun:
            unfinished.write_text("half of a lin")
        raise error
    assert path.read_bytes() == content and list(tmp_path.iterdir()) == [path]


def test_what_cannot_take_its_name_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(IsADirectoryError):
        write_json(tmp_path / "taken", {})
    with pytest.raises(FileNotFoundError), appearing(tmp_path / "never-written"):
        pass
    (tmp_path / "file").write_text("mine")
    with pytest.raises(NotADirectoryError), appearing_folder(tmp_path / "file") as unfinished:
        (unfinished / "a").write_text("b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "taken"]
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("folder", [False, True])
def test_a_killed_writer_leaves_what_was_there_and_the_next_one_clears_up(tmp_path: Path, folder: bool) -> None:
    path = tmp_path / "model"
    for content in ("first", "second"):
        left = leave_killed(path, folder=folder)
        assert left.name.startswith(".model.") and left.name.endswith(UNFINISHED)
        assert (path / "part" if folder else path).exists() == (content == "second")
        writer: AbstractContextManager[Path] = appearing_folder(path) if folder else appearing(path)
        with writer as unfinished:
            assert not left.exists()
            (unfinished / "part" if folder else unfinished).write_text(content)
        assert (path / "part" if folder else path).read_text() == content
        assert list(tmp_path.iterdir()) == [path]


def test_what_another_host_or_a_living_process_writes_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    elsewhere = leave_killed(path)
    # Of a host with the same name, too: nodes of a cluster may all be called alike.
    another = machine()[:-8] + "01234567"
    elsewhere = elsewhere.rename(elsewhere.with_name(elsewhere.name.replace(machine(), another)))
    with appearing(path) as one, appearing(path) as other:
        assert one != other
        one.write_text("one")
        other.write_text("other")
    assert path.read_text() == "one" and set(tmp_path.iterdir()) == {path, elsewhere}


@pytest.mark.parametrize("folder", [False, True])
def test_what_another_host_left_a_week_ago_is_cleared_up(tmp_path: Path, folder: bool) -> None:
    path = tmp_path / "model"
    for days in (8, 6):
        left = leave_killed(path, folder=folder)
        left = left.rename(left.with_name(left.name.replace(machine(), f"another-{days}")))
        os.utime(left, (0, time.time() - days * 24 * 3600))
    write_json(path, {})
    assert set(tmp_path.iterdir()) == {path, left}


def test_a_name_that_must_be_free_goes_to_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "a"
    with appearing_first(path) as unfinished:
        unfinished.write_text("first")
        assert not path.exists()
    with pytest.raises(FileExistsError), appearing_first(path) as unfinished:
        unfinished.write_text("second")
    with pytest.raises(ValueError, match="half"), appearing_first(path.with_name("b")):
        raise ValueError("half way")
    assert path.read_text() == "first" and list(path.parent.iterdir()) == [path]

    def asked_twice(source: Path, target: Path) -> None:
        """As NFS does where its first answer is lost."""
        link(source, target)
        link(source, target)

    link = os.link
    monkeypatch.setattr(os, "link", asked_twice)
    with appearing_first(path.with_name("b")) as unfinished:
        unfinished.write_text("ours")
    with pytest.raises(FileExistsError), appearing_first(path) as unfinished:
        unfinished.write_text("third")
    assert (path.with_name("b")).read_text() == "ours" and path.read_text() == "first"


def test_no_reader_takes_what_a_killed_writer_left_for_a_result(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "sweep" / "runs" / "a")
    directory.blocks.mkdir(parents=True)
    write_block(directory.blocks, 0, {"weight": torch.ones(2)})
    write_block_report(directory.blocks, BlockReport(0))
    left = [leave_killed(directory.blocks / name) for name in (block_file(1), "block-00001.json")]
    left.append(leave_killed(directory.path / "evaluation" / "held-out.parquet"))
    left.append(leave_killed(directory.path / "result.json"))
    left.append(leave_killed(directory.checkpoint, folder=True))
    assert [report.block for report in read_block_reports(directory.blocks)] == [0]
    assert read_block(directory.blocks, 1) is None
    assert directory.result() is None and not directory.checkpoint.exists()
    for suffix in (".safetensors", ".json", ".parquet"):
        assert not [path for path in left if path.suffix == suffix]
    assert [path.name for path in directory.blocks.glob("*.safetensors")] == [block_file(0)]
    directory.drop_weights()
    assert [path.name for path in directory.blocks.iterdir()] == ["block-00000.json"]


def test_a_corpus_is_read_without_what_a_killed_writer_left_in_it(tmp_path: Path) -> None:
    (tmp_path / "sw").mkdir()
    (tmp_path / "sw" / "a.txt").write_text("habari\n")
    leave_killed(tmp_path / "sw" / "b.txt")
    assert [shard.name for shard in FolderCorpus(str(tmp_path)).shards("sw", FactsCache(None), FooterReader())] == [
        "sw/a.txt"
    ]


def test_two_processes_that_write_the_same_file_end_with_one_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    program = (
        "import pathlib, sys\n"
        "from mbs_ray.files import write_json\n"
        "for turn in range(60):\n"
        "    write_json(pathlib.Path(sys.argv[1]), {'of': [sys.argv[2]] * 20_000})\n"
    )
    writers = [run(program, path, name) for name in ("one", "other")]
    seen = set()
    while any(writer.poll() is None for writer in writers):
        if path.is_file():
            entries = json.loads(path.read_text())["of"]
            assert len(entries) == 20_000 and len(set(entries)) == 1
            seen.add(entries[0])
    assert [writer.returncode for writer in writers] == [0, 0]
    assert seen and seen <= {"one", "other"} and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("mask", "file", "folder"), [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700)])
def test_permissions_follow_the_umask(tmp_path: Path, mask: int, file: int, folder: int) -> None:
    with umask(mask):
        write_json(tmp_path / "new" / "a.json", {})
        with appearing_folder(tmp_path / "b") as unfinished:
            (unfinished / "c").write_text("d")
    modes = [(tmp_path / one).stat().st_mode & 0o777 for one in ("new", "new/a.json", "b", "b/c")]
    assert modes == [folder, file, folder, file]


def test_a_folder_takes_the_place_of_one_that_has_files_and_a_failure_leaves_that(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with appearing_folder(path) as unfinished:
        (unfinished / "old").write_text("old")
    with pytest.raises(ValueError, match="half"), appearing_folder(path) as unfinished:
        (unfinished / "new").write_text("new")
        raise ValueError("half way")
    assert [one.name for one in path.iterdir()] == ["old"] and list(tmp_path.iterdir()) == [path]
    with appearing_folder(path) as unfinished:
        (unfinished / "deep").mkdir()
        (unfinished / "deep" / "new").write_text("new")
    assert [one.name for one in path.iterdir()] == ["deep"] and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["n" * 250 + ".json", "ሀ" * 83, "a[b]*?.json", ".hidden"])
def test_any_name_that_a_file_may_have_can_be_written(tmp_path: Path, name: str) -> None:
    leave_killed(tmp_path / name)
    write_json(tmp_path / name, {"a": 1})
    assert [one.name for one in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == '{\n "a": 1\n}\n'


def test_nobody_else_gives_a_finished_file_its_name() -> None:
    for path in sorted((REPOSITORY / "mbs_ray").rglob("*.py")):
        if path.name == "files.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and len(node.args) == 1:
                assert node.func.attr not in ("replace", "rename"), f"{path}:{node.lineno}"
