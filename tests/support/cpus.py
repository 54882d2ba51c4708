"""CPUs of the test cluster, held by nobody in particular."""

import time

import ray
from ray.util.placement_group import PlacementGroup, placement_group


def all_cpus() -> list[PlacementGroup]:
    """Take every CPU, those too that stages of an earlier test still give back."""
    taken, quiet = [], 0
    while quiet < 10:
        if free := int(ray.available_resources().get("CPU", 0)):
            taken.append(placement_group([{"CPU": 1}] * free))
            assert taken[-1].wait(20)
        quiet = 0 if free else quiet + 1
        time.sleep(0.1)
    return taken
