"""What the process of a stage sets before it imports torch, and any other process does not."""

import gc
import subprocess
import sys
from importlib import import_module

import ray
from ray.cluster_utils import Cluster

FEW, MANY = 2_000, 50_000


def test_a_stage_looks_for_garbage_rarely(ray_cluster: Cluster) -> None:
    # Local, so that its code travels with it: Ray's workers cannot import tests.
    class Looking:
        def threshold(self) -> int:
            import_module("mbs_ray.cluster.stage.actor")
            return gc.get_threshold()[0]

    looking = ray.remote(Looking).remote()
    assert ray.get(looking.threshold.remote(), timeout=120) == MANY
    ray.kill(looking)


def test_large_pages_are_asked_for_before_torch_is_imported_and_a_driver_looks_for_garbage_as_before() -> None:
    program = (
        "import gc, os, sys; import mbs_ray.cluster.stage\n"
        "print('torch' in sys.modules, os.environ['THP_MEM_ALLOC_ENABLE'], gc.get_threshold()[0])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    imported, large, threshold = done.stdout.split()
    assert (imported, large) == ("False", "1") and int(threshold) <= FEW, done.stderr
