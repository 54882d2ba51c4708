"""What stages import, imported while the driver is busy: on a Ray of its own, with one process to look into."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import sys, time
import ray
from mbs_ray.cluster.cluster_options import ClusterOptions
from mbs_ray.cluster.connect import connecting
from mbs_ray.cluster.import_ahead import import_ahead

@ray.remote
def imported():
    return "mbs_ray.cluster.stage.actor" in sys.modules and "torch" in sys.modules

with connecting("local", 1, lambda: import_ahead(ClusterOptions())) as connect:
    connect()
    until = time.monotonic() + 60
    while not (found := ray.get(imported.remote())) and time.monotonic() < until:
        time.sleep(0.5)
    print(found, "torch" in sys.modules)
assert not ray.is_initialized()
"""


@pytest.mark.slow
def test_a_process_of_ray_imports_the_stage_while_the_driver_does_not() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    ended = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120, env=environment)
    assert (ended.returncode, ended.stdout) == (0, "True False\n"), ended.stderr
