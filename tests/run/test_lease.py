"""One command at a time works on a folder: owners that race, are killed, stopped or replaced."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import mbs_ray.run.lease as module
from mbs_ray.errors import InputError, LeaseLostError
from mbs_ray.run.lease import LEASE, leased

TURNS = 20
PROGRAM = """
import pathlib, sys, time
from mbs_ray.driver.interrupt import interrupted_by_sigterm
from mbs_ray.errors import LeaseLostError
from mbs_ray.run.lease import leased
with interrupted_by_sigterm(), leased(pathlib.Path(sys.argv[1]), beat=0.1) as lease:
    (lease.path.parent / "content").touch()
    print("held", flush=True)
    while True:
        time.sleep(0.02)
        try:
            lease.check()
        except LeaseLostError as lost:
            print(lost, flush=True)
            raise SystemExit(3)
"""
#: Many times, begin together with the others, and hold what was got until all have tried.
CONTENDER = """
import os, pathlib, sys, time
from mbs_ray.errors import InputError
from mbs_ray.run.lease import leased
folder, count, turns = pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
def meet(name):
    (folder / name).mkdir(exist_ok=True)
    (folder / name / str(os.getpid())).touch()
    while len(os.listdir(folder / name)) < count:
        time.sleep(0.001)
for turn in range(turns):
    meet(f"begin-{turn}")
    line = ""
    try:
        with leased(folder / str(turn)):
            meet(f"end-{turn}")
    except InputError as error:
        line = str(error)
        meet(f"end-{turn}")
    print(line, flush=True)
"""


def start_owner(folder: Path) -> "subprocess.Popen[str]":
    """A process that holds the lease until it is ended, or loses it."""
    owner = subprocess.Popen([sys.executable, "-c", PROGRAM, str(folder)], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None and owner.stdout.readline() == "held\n"
    return owner


def leave_dead(folder: Path) -> None:
    """Leave the lease of an owner that was killed."""
    owner = start_owner(folder)
    owner.kill()
    owner.wait(30)


def move_elsewhere(folder: Path) -> None:
    """Make it the lease of another host."""
    path = folder / LEASE
    path.write_text(json.dumps(json.loads(path.read_text()) | {"machine": "elsewhere", "host": "node-7"}))


@pytest.mark.parametrize(("count", "dead"), [(2, False), (4, True)])
def test_of_those_that_begin_at_one_moment_one_works_and_the_others_name_it(
    tmp_path: Path, count: int, dead: bool
) -> None:
    """Also where each finds the lease of a dead owner, which one of them replaces."""
    if dead:
        leave_dead(tmp_path / "dead")
        for turn in range(TURNS):
            (tmp_path / str(turn)).mkdir()
            (tmp_path / str(turn) / LEASE).write_bytes((tmp_path / "dead" / LEASE).read_bytes())
    command = [sys.executable, "-c", CONTENDER, str(tmp_path), str(count), str(TURNS)]
    contenders = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(count)]
    lines = {one.pid: one.communicate(timeout=120)[0].split("\n")[:TURNS] for one in contenders}
    assert [one.returncode for one in contenders] == [0] * count
    for turn in range(TURNS):
        (winner,) = [process for process, told in lines.items() if not told[turn]]
        refusals = [told[turn] for told in lines.values() if told[turn]]
        assert len(refusals) == count - 1
        for line in refusals:
            assert line.startswith(f"{tmp_path / str(turn)}: held by ") and "\n" not in line
            assert f"(process {winner})" in line and os.uname().nodename in line and "--take-over" in line
    assert not list(tmp_path.glob("[0-9]*/*")) and not list(tmp_path.glob("[0-9]*/.*"))


def test_an_owner_that_was_killed_on_this_machine_is_replaced_at_once(tmp_path: Path) -> None:
    owner, said = start_owner(tmp_path), []
    owner.kill()
    time.sleep(0.2)  # dead, but still a zombie
    with leased(tmp_path, say=said.append):
        pass
    owner.wait(30)
    leave_dead(tmp_path)
    with leased(tmp_path, say=said.append):
        assert json.loads((tmp_path / LEASE).read_text())["process"] == os.getpid()
    assert ["taken over from" in line for line in said] == [True, True]
    assert f"(process {owner.pid})" in said[0] and not (tmp_path / LEASE).exists()


def test_a_number_that_another_process_has_by_now_is_no_owner(tmp_path: Path) -> None:
    leave_dead(tmp_path)
    content = json.loads((tmp_path / LEASE).read_text())
    (tmp_path / LEASE).write_text(json.dumps(content | {"process": os.getpid()}))
    with leased(tmp_path):
        pass
    with leased(tmp_path), pytest.raises(InputError, match=rf"\(process {os.getpid()}\)"), leased(tmp_path):
        pass


def test_a_dead_owner_elsewhere_is_replaced_when_asked_and_after_silence(tmp_path: Path) -> None:
    leave_dead(tmp_path)
    move_elsewhere(tmp_path)
    said: list[str] = []
    with pytest.raises(InputError, match=r"on node-7 .*last sign of life \d+ s ago; .*--take-over"), leased(tmp_path):
        pass
    begun = time.monotonic()
    with leased(tmp_path, take_over=True, say=said.append, silent=0.5) as lease:
        lease.check()
        assert time.monotonic() - begun >= 0.5
    assert ["watching" in said[0], "taken over" in said[1], len(said)] == [True, True, 2]


def test_a_living_owner_is_never_replaced(tmp_path: Path) -> None:
    owner = start_owner(tmp_path)
    with pytest.raises(InputError, match="which lives; stop it there"), leased(tmp_path, take_over=True, silent=30):
        pass
    owner.terminate()
    assert owner.wait(30) == 1 and not (tmp_path / LEASE).exists()


def test_an_owner_that_ends_while_it_is_watched_leaves_its_place(tmp_path: Path) -> None:
    owner, said = start_owner(tmp_path), []
    owner.send_signal(signal.SIGSTOP)
    timer = threading.Timer(0.5, owner.kill)
    timer.start()
    with leased(tmp_path, take_over=True, say=said.append, silent=60):
        assert "taken over" in said[-1]
    owner.wait(30)


def test_an_owner_that_was_replaced_stops_and_leaves_the_new_lease_alone(tmp_path: Path) -> None:
    owner = start_owner(tmp_path)
    owner.send_signal(signal.SIGSTOP)
    with leased(tmp_path, take_over=True, silent=1, beat=0.1) as lease:
        stamp = (tmp_path / LEASE).stat().st_ino
        owner.send_signal(signal.SIGCONT)
        line = owner.stdout.readline() if owner.stdout else ""
        assert "was taken over by" in line and f"(process {os.getpid()})" in line
        assert owner.wait(30) == 3
        assert (tmp_path / LEASE).stat().st_ino == stamp
        time.sleep(0.3)
        lease.check()
    assert [path.name for path in tmp_path.iterdir()] == ["content"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_owner_leaves_no_lease(tmp_path: Path, number: int) -> None:
    owner = start_owner(tmp_path)
    owner.send_signal(number)
    owner.wait(30)
    assert [path.name for path in tmp_path.iterdir()] == ["content"]


def test_signs_of_life_are_given_until_the_end(tmp_path: Path) -> None:
    with leased(tmp_path, beat=0.05) as lease:
        stamps = set()
        while len(stamps) < 4:
            stamps.add(lease.path.stat().st_mtime_ns)
            time.sleep(0.01)
        (own,) = [one for one in threading.enumerate() if one.name == "lease"]
    own.join(10)
    assert not own.is_alive()


def test_a_lease_that_somebody_removed_is_lost(tmp_path: Path) -> None:
    with leased(tmp_path, beat=0.05) as lease:
        lease.path.unlink()
        time.sleep(0.5)
        with pytest.raises(LeaseLostError, match=f"{LEASE} is gone"):
            lease.check()


def test_whoever_comes_back_after_a_long_pause_looks_before_it_writes(tmp_path: Path) -> None:
    with leased(tmp_path, beat=60) as lease:
        lease.path.unlink()
        lease.check()  # the thread has not looked yet
        lease._looked -= 121
        with pytest.raises(LeaseLostError):
            lease.check()


@pytest.mark.parametrize("filled", [False, True])
def test_a_folder_that_was_made_for_nothing_is_removed(tmp_path: Path, filled: bool) -> None:
    folder = tmp_path / "out" / "sweep"
    with pytest.raises(ValueError, match="bad"), leased(folder):
        if filled:
            (folder / "a").touch()
        raise ValueError("bad input")
    assert [path.name for path in tmp_path.rglob("*")] == (["out", "sweep", "a"] if filled else [])


def test_file_systems_without_links_do_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    with leased(tmp_path), pytest.raises(InputError, match="held by"), leased(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_lease_is_named(tmp_path: Path) -> None:
    (tmp_path / LEASE).write_text("{")
    with pytest.raises(InputError, match=f"{LEASE}: is damaged; remove it"), leased(tmp_path):
        pass


def test_what_a_change_of_owners_left_half_done_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leave_dead(tmp_path)
    gate = tmp_path / f".{LEASE}.{json.loads((tmp_path / LEASE).read_text())['token']}"
    gate.mkdir()
    monkeypatch.setattr(module, "_CHANGING_SECONDS", 0.1)
    with pytest.raises(InputError, match=rf"{gate}: .* remove this folder"), leased(tmp_path):
        pass
    gate.rmdir()
    with leased(tmp_path):
        pass
