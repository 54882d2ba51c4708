"""A run that Ray's memory monitor kills three times is given up with the reason memory; the others go on."""

import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.slow.memory_pressure import ROOM


@pytest.mark.skipif(psutil.virtual_memory().available < 2 * ROOM, reason="needs 12 GiB of free memory")
def test_the_memory_monitor_costs_the_run_that_needs_too_much_and_no_other(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.slow.memory_pressure", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    *said, last = done.stdout.splitlines()
    result = json.loads(last)
    assert result["ended"]["modest"] is None and result["same_bits"]
    assert result["ended"]["greedy"].startswith("memory: Ray's memory monitor killed its stage 3 times at one point;")
    assert result["starts"] == 4
    killed = "stage 1 was killed by Ray's memory monitor during greedy; the same command resumes from here"
    assert sum(line.startswith(killed) for line in said) == 2
