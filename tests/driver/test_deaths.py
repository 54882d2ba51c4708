"""When a run is given up, and that SIGTERM ends work as Ctrl-C does."""

import os
import signal
from pathlib import Path
from typing import get_args

import pytest

from mbs_ray.cluster.job import Job, Score
from mbs_ray.driver.deaths import DEATHS_ALLOWED, StageDeaths
from mbs_ray.driver.interrupt import interrupted_by_sigterm
from mbs_ray.driver.stage_driver import GIVEN_UP
from mbs_ray.errors import Shortage


def job(directory: Path) -> Job:
    return Job("run", directory, "float32", 1, directory, (range(2),), Score())


def test_a_run_that_finishes_nothing_between_deaths_is_given_up(tmp_path: Path) -> None:
    deaths = StageDeaths()
    given_up = [deaths.give_up("run", job(tmp_path)) for _ in range(DEATHS_ALLOWED)]
    assert given_up == [False] * (DEATHS_ALLOWED - 1) + [True]


def test_a_block_or_an_evaluation_finished_in_between_forgives(tmp_path: Path) -> None:
    deaths = StageDeaths()
    for name in ("blocks/block-00000.safetensors", "evaluation/held-out.parquet"):
        assert not deaths.give_up("run", job(tmp_path))
        assert not deaths.give_up("run", job(tmp_path))
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    assert not deaths.give_up("run", job(tmp_path))


def test_what_is_not_whole_yet_does_not_forgive(tmp_path: Path) -> None:
    deaths = StageDeaths()
    assert not deaths.give_up("run", job(tmp_path))
    (tmp_path / "blocks").mkdir()
    for name in ("journal.jsonl", "blocks/block-00000.safetensors.7.tmp"):
        assert not (tmp_path / name).exists()
        (tmp_path / name).touch()
    assert not deaths.give_up("run", job(tmp_path))
    assert deaths.give_up("run", job(tmp_path))


def test_other_runs_do_not_count() -> None:
    deaths = StageDeaths()
    assert not any(deaths.give_up(name, None) for name in ("a", "b", "", "a", "b", ""))
    assert deaths.give_up("a", None)


def test_a_run_is_given_up_with_what_its_stage_died_of() -> None:
    assert GIVEN_UP.keys() == set(get_args(Shortage))
    reasons = {kind: reason.format(times=3) for kind, reason in GIVEN_UP.items()}
    assert all(" 3 times at one point" in reason for reason in reasons.values())
    assert reasons["host memory"].startswith("memory: Ray's memory monitor killed its stage")
    assert reasons["device memory"].startswith("memory: its stage ran out of device memory")


def test_sigterm_interrupts_and_is_as_it_was_afterwards() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), interrupted_by_sigterm():
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()
    assert signal.getsignal(signal.SIGTERM) is before
