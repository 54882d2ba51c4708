"""Stages that stay up between two pieces of work: starting them costs about ten seconds."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import ray

from mbs_ray.cluster.cluster_options import ClusterOptions
from mbs_ray.cluster.layout import Layout
from mbs_ray.cluster.offload import Offload
from mbs_ray.cluster.pipeline import Pipeline
from mbs_ray.cluster.stage.actor import StageActor
from mbs_ray.run.numerics import Numerics


class StagePool:
    """A pool that lends pipelines by layout and numerics; as a context manager it stops all of them at its end.

    A pipeline that comes back whole waits for the next request of its kind; one that failed while lent is stopped.
    ``idle_cpus``: CPUs that idle pipelines may hold together with one being started; a command has none to spare.
    """

    def __init__(self, idle_cpus: int = 0) -> None:
        self._idle_cpus = idle_cpus
        self._idle: list[Pipeline] = []
        self._ahead: list[Any] = []
        #: How often stages were started.
        self.starts = 0

    def __enter__(self) -> "StagePool":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.rest()

    def start_ahead(self, options: ClusterOptions) -> None:
        """Start as many actors as the first pipeline will likely have; returns at once, while they import for seconds.

        Only where all of them will be on one node, and on CPUs: which GPUs a process sees is settled when it starts.
        """
        # Ray keeps processes for later, but gives none that has run a task to an actor: only an actor imports for it.
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if len(nodes) == 1 and (options.device == "cpu" or not nodes[0].get("GPU")):
            wanted = min((options.stages or 1) * (options.replicas or 1), int(nodes[0].get("CPU", 0)))
            actor: Any = StageActor
            self._ahead += [actor.options(num_cpus=0).remote() for _ in range(wanted)]

    def rest(self) -> None:
        """Stop the pipelines that are not lent, and actors without one."""
        self._stop_idle(0)
        self._ahead = []

    def leave_a_cpu(self) -> None:
        """Stop the idle pipelines where no CPU of the connected Ray is left: text is drawn in tasks that need one."""
        if ray.available_resources().get("CPU", 0) < 1:
            self._stop_idle(0)

    @contextmanager
    def lent(
        self, layout: Layout, numerics: Numerics, offload: Offload, say: Callable[[str], None]
    ) -> Iterator[Pipeline]:
        """Lend a pipeline without runs, whose stages keep activations as ``offload`` says.

        ``say`` is called before long preparations. Raises what entering a :class:`Pipeline` does.
        """
        pipeline = self._idle_one(layout, numerics) or self._start(layout, numerics)
        try:
            pipeline.make_ready(offload, say)
            yield pipeline
        except BaseException:
            pipeline.stop()
            raise
        self._idle.append(pipeline)

    def _idle_one(self, layout: Layout, numerics: Numerics) -> Pipeline | None:
        """Take an idle pipeline whose actors still answer; those that do not are stopped."""
        alike = [one for one in self._idle if (one.layout, one.numerics) == (layout, numerics)]
        for pipeline in reversed(alike):
            self._idle.remove(pipeline)
            if not pipeline.busy and pipeline.answers():
                return pipeline
            pipeline.stop()
        return None

    def _start(self, layout: Layout, numerics: Numerics) -> Pipeline:
        self._stop_idle(max(0, self._idle_cpus - layout.actors * numerics.threads))
        ahead, self._ahead = self._ahead, []
        pipeline = Pipeline(layout, numerics, ahead=ahead)
        pipeline.start()
        self.starts += 1
        return pipeline

    def _stop_idle(self, cpus: int) -> None:
        """Stop the pipelines that have waited longest, until the others hold at most this many CPUs."""
        while self._idle and sum(one.layout.actors * one.numerics.threads for one in self._idle) > cpus:
            self._idle.pop(0).stop()
