"""Resources that a command gets from the connected Ray: stages and replicas, kind of device, threads of each."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import ray

from mbs_ray.cluster.cluster_options import ClusterOptions
from mbs_ray.cluster.job import Job
from mbs_ray.cluster.layout import Layout, resolve_layout
from mbs_ray.cluster.sharding import shard_blocks
from mbs_ray.errors import InputError
from mbs_ray.run.numerics import Numerics


@dataclass(frozen=True)
class Resources:
    """The layout of actors, and the numerics of each."""

    layout: Layout
    numerics: Numerics

    def __str__(self) -> str:
        return f"{self.layout}, {self.numerics.threads} thread(s) each, on {self.numerics.device}"

    def shrunk_to_cluster(self, say: Callable[[str], None]) -> "Resources":
        """Return a copy with at most as many stages as the cluster, which may have lost a node, has CPUs or GPUs for.

        The number of stages changes no bit. Raises :class:`InputError` where there is no room for the replicas of one
        stage, on whose number the bits depend.
        """
        room, replicas = room_for_actors(self.numerics.threads), self.layout.replicas
        if room >= self.layout.actors:
            return self
        if room < replicas:
            raise InputError(
                f"layout.replicas: the cluster has room for {room} of the {replicas} replicas of a stage, with "
                f"{self.numerics.threads} thread(s) each; bring nodes and give the same command again, or ask for less "
                "where nothing is begun"
            )
        fit = Layout(room // replicas, replicas)
        say(f"the cluster has room for {fit.stages} of {self.layout.stages} stages: going on with those")
        return replace(self, layout=fit)

    def sharded(self, job: Job) -> Job:
        """Spread a job over the present number of stages; if it has changed, blocks count as equally costly."""
        if len(job.blocks) == self.layout.stages:
            return job
        return replace(job, blocks=tuple(shard_blocks([1.0] * job.blocks[-1].stop, 0.0, self.layout.stages)))


def settle_resources(options: ClusterOptions, *, runs: int, blocks: int, microbatches: int) -> Resources:
    """Resolve options that are None by what the connected Ray has: see :func:`resolve_layout`."""
    layout = resolve_layout(
        options.stages,
        options.replicas,
        actors=room_for_actors(options.threads),
        runs=runs,
        blocks=blocks,
        microbatches=microbatches,
    )
    threads = options.threads or _threads_of_each(layout.actors)
    return Resources(layout, Numerics("cuda" if _gpus() else "cpu", threads))


def room_for_actors(threads: int | None) -> int:
    """Count the actors the connected Ray has room for: one per GPU, else one per node, or per ``threads`` CPUs."""
    return _gpus() or sum(cpus // threads if threads else 1 for cpus in _cpus_of_nodes())


def _gpus() -> int:
    return int(ray.cluster_resources().get("GPU", 0))


def _cpus_of_nodes() -> list[int]:
    """Return the CPUs of each node that has any, largest first."""
    nodes = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    return sorted((cpus for cpus in nodes if cpus), reverse=True)


def _threads_of_each(actors: int) -> int:
    """Compute the CPUs left for each actor when all are spread evenly over the nodes that have CPUs."""
    largest = _cpus_of_nodes()[:actors]
    if not largest:
        return 1
    return max(1, min(largest) // -(-actors // len(largest)))
