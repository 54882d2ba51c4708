"""A whole command as a process of its own: it prints nothing of other libraries, and ends well when it is stopped."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import pytest

from tests.support.own_lines import foreign_lines

MINI = Path(str(files("mbs_ray") / "mini"))
SECONDS = 600.0


def compress(out: Path) -> "subprocess.Popen[str]":
    arguments = (
        "compress", "--model", MINI / "models" / "bloom-mini-2m", "--corpus", MINI / "text" / "calibration",
        "--evaluate", MINI / "text" / "evaluation", "--method", "wanda", "--languages", "en,sw", "--segments", 8,
        "--sequence-length", 64, "--evaluation-segments", 4, "--threads", 1, "--out", out,
    )  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-m", "mbs_ray.cli", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {"COLUMNS": "200"},
    )


def wait_for(there: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
    until = time.monotonic() + SECONDS
    while not there():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.slow
def test_a_command_that_is_stopped_says_one_line_and_the_same_command_finishes(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run = out / "compress" / "runs" / "wanda-50-proportional"
    moments = {
        signal.SIGTERM: (out / "mlflow.db").is_file,  # MLflow is reached while Ray starts
        signal.SIGINT: run.is_dir,  # the run is begun: its stages start
    }
    for number, reached in moments.items():
        process = compress(out)
        wait_for(reached, process)
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=SECONDS)
        assert process.returncode == 128 + number, (stdout, stderr)
        assert stderr == (
            f"interrupted: 0 of 1 run is finished; the same command resumes from here ({out / 'compress'})\n"
        )
        assert foreign_lines(stdout) == []
    process = compress(out)
    stdout, stderr = process.communicate(timeout=SECONDS)
    assert (process.returncode, stderr) == (0, ""), stdout
    assert foreign_lines(stdout) == []
    assert stdout.splitlines()[-1] == f"tracking: sqlite:///{out}/mlflow.db   (mbs ui {out})"
    assert (run / "checkpoint" / "config.json").is_file()


@pytest.mark.parametrize(
    "line",
    [
        "2026-11-28 15:05:19,730\tWARNING authentication_token_setup.py:85 -- Token authentication is enabled",
        "[2026-11-28 15:06:11,740 E 24051 24051] core_worker.cc:2465: Actor 'MapWorker' has constructor arguments",
        "(raylet) Spilled 2048 MiB",
        "INFO  [alembic.runtime.migration] Context impl SQLiteImpl.",
        "[WARNING] [real_accelerator.py:209:get_accelerator] Setting accelerator to CPU.",
        "/site-packages/x.py:3: FutureWarning: y",
    ],
)
def test_lines_of_other_libraries_are_told_apart(line: str) -> None:
    assert foreign_lines(f"layout: 1 × 1 (stages × replicas), 1 thread(s) each, on cpu\n{line}\n") == [line]
