"""Stages that the tests of a session share: starting a group of them costs about ten seconds."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import ray

from mbs_ray.cluster.layout import Layout
from mbs_ray.cluster.offload import Offload
from mbs_ray.cluster.pipeline import Pipeline
from mbs_ray.cluster.stage_pool import StagePool
from mbs_ray.run.numerics import Numerics

#: How almost all stages of tests compute.
ONE = Numerics("cpu", 1)


class WatchedPool(StagePool):
    """A pool of which a test knows the processes that it has lent, to kill one of them."""

    lending: tuple[int, ...] = ()

    @contextmanager
    def lent(
        self, layout: Layout, numerics: Numerics, offload: Offload, say: Callable[[str], None]
    ) -> Iterator[Pipeline]:
        with super().lent(layout, numerics, offload, say) as pipeline:
            self.lending = tuple(pipeline.process_ids)
            try:
                yield pipeline
            finally:
                self.lending = ()


#: Of the session's twelve CPUs four stay free: for the drawing of text, for tasks and for commands' own stages.
WARM = WatchedPool(idle_cpus=8)


def kill_a_stage_after(folder: Path, pattern: str) -> threading.Thread:
    """Kill one of the stages that :data:`WARM` has lent, as soon as the folder holds a file of this pattern."""

    def kill_one() -> None:
        while not list(folder.glob(pattern)):
            time.sleep(0.002)
        os.kill(WARM.lending[0], signal.SIGKILL)

    killer = threading.Thread(target=kill_one)
    killer.start()
    return killer


def stage_processes() -> set[int]:
    """Process ids of all stages that this session's Ray runs."""
    actors = ray._private.state.actors().values()
    return {one["Pid"] for one in actors if one["ActorClassName"] == "Stage" and one["State"] == "ALIVE"}
