"""Stages that the tests of a session share: starting a group of them costs about ten seconds."""

import ray

from mbs_ray.cluster.stage_pool import StagePool

#: Of the session's six CPUs two stay free, for the drawing of text and for tasks.
WARM = StagePool(idle_cpus=4)


def stage_processes() -> set[int]:
    """Process ids of all stages that this session's Ray runs; call ``WARM.rest()`` before a sweep to see its own."""
    actors = ray._private.state.actors().values()
    return {one["Pid"] for one in actors if one["ActorClassName"] == "Stage" and one["State"] == "ALIVE"}
