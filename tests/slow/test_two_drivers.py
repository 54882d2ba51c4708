"""The same command given twice: the second is refused, and takes over once the first was killed."""

import json
import os
import signal
import subprocess
import sys
import time
from importlib.resources import files
from pathlib import Path

from mbs_ray.run.lease import LEASE

MINI = Path(str(files("mbs_ray") / "mini"))
SECONDS = 600.0


def compress(out: Path) -> "subprocess.Popen[str]":
    arguments = (
        "compress", "--model", MINI / "models" / "bloom-mini-2m", "--corpus", MINI / "text" / "calibration",
        "--method", "wanda", "--languages", "en,sw", "--segments", 8, "--sequence-length", 64, "--threads", 1,
        "--out", out,
    )  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-m", "mbs_ray.cli", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {"COLUMNS": "200"},
    )


def test_the_second_is_refused_and_goes_on_once_the_first_was_killed(tmp_path: Path) -> None:
    out = tmp_path / "out"
    sweep, until = out / "compress", time.monotonic() + SECONDS
    first = compress(out)
    while not (sweep / "runs" / "wanda-50-proportional").is_dir():
        assert first.poll() is None and time.monotonic() < until, first.communicate()
        time.sleep(0.05)
    assert json.loads((sweep / LEASE).read_text())["process"] == first.pid
    first.send_signal(signal.SIGSTOP)  # so that it does not end too soon
    second = compress(out)
    stdout, stderr = second.communicate(timeout=SECONDS)
    assert second.returncode == 2 and stdout == ""
    assert stderr.startswith(f"error: {sweep}: held by ") and stderr.count("\n") == 1
    assert f"(process {first.pid})" in stderr
    first.kill()
    first.communicate(timeout=SECONDS)
    third = compress(out)
    stdout, stderr = third.communicate(timeout=SECONDS)
    assert third.returncode == 0, stderr
    assert "taken over from" in stdout and f"(process {first.pid})" in stdout
    assert (sweep / "runs" / "wanda-50-proportional" / "checkpoint").is_dir()
    assert not list(sweep.glob(f"*{LEASE}*"))
