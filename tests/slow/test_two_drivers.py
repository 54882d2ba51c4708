"""The same command given twice: one works and the other is refused, and takes over once the first was killed."""

import getpass
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
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


def test_of_two_that_start_together_one_works_and_its_journal_is_whole(tmp_path: Path) -> None:
    both = [compress(tmp_path / "out"), compress(tmp_path / "out")]
    said = {process: process.communicate(timeout=SECONDS) for process in both}
    worked, refused = sorted(both, key=lambda process: process.returncode)
    assert (worked.returncode, refused.returncode) == (0, 2), said
    assert said[refused][0] == "" and said[refused][1].count("\n") == 1
    assert f"held by {getpass.getuser()} on {os.uname().nodename} (process {worked.pid})" in said[refused][1]
    run = tmp_path / "out" / "compress" / "runs" / "wanda-50-proportional"
    lines = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    blocks = len(list(run.glob("blocks/*.safetensors")))
    counted = Counter((line["key"], line["step"]) for line in lines)
    assert set(counted.values()) == {1} and blocks == 6
    assert [counted["block/seconds", block] for block in range(blocks)] == [1] * blocks
    assert json.loads((run / "result.json").read_text())["tracked"]
