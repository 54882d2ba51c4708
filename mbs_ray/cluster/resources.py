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

#: CPUs of a node from which on stages leave one free.
_LARGE_NODE = 8


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
        room = room_for_actors(self.numerics.threads, self.numerics.device)
        replicas = self.layout.replicas
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
    """Resolve options that are None by what the connected Ray has: see :func:`resolve_layout`.

    The kind of device is decided here, for driver and stages alike. Raises :class:`InputError` where there is none of
    the kind that is asked for.
    """
    device = settled_device(options.device)
    if not room_for_actors(options.threads, device):
        raise InputError(_no_room(options.threads, device))
    layout = resolve_layout(
        options.stages,
        options.replicas,
        actors=room_for_actors(options.threads, device),
        runs=runs,
        blocks=blocks,
        microbatches=microbatches,
    )
    threads = options.threads or (_threads_of_a_gpu() if device == "cuda" else _threads_of_each(layout.actors))
    return Resources(layout, Numerics(device, threads))


def room_for_actors(threads: int | None, asked: str) -> int:
    """Count the actors the connected Ray has room for: one per GPU with CPUs, else one per node or ``threads`` CPUs."""
    if settled_device(asked) == "cuda":
        return sum(min(gpus, cpus // (threads or 1)) for cpus, gpus in _nodes_with_gpus())
    return sum(cpus // threads if threads else 1 for cpus in _cpus_of_nodes())


def needs_of_actor(threads: int | None, device: str) -> str:
    """Say what one actor takes of its node: ``2 CPU(s) and a GPU``."""
    return f"{threads or 1} CPU(s){' and a GPU' if device == 'cuda' else ''}"


def _no_room(threads: int | None, device: str) -> str:
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    there = ", ".join(f"{node.get('CPU', 0):.0f} CPUs and {node.get('GPU', 0):.0f} GPUs" for node in nodes)
    return (
        f"layout: no node has {needs_of_actor(threads, device)} for an actor; there are nodes of {there}. "
        "Bring others (--wait SECONDS waits for them), or ask for fewer threads"
    )


def settled_device(asked: str) -> str:
    """Resolve ``auto`` in the kind of device by what the connected Ray has.

    Raises :class:`InputError` where ``cuda`` is asked for and there is none.
    """
    gpus = int(ray.cluster_resources().get("GPU", 0))
    if asked == "cuda" and not gpus:
        raise InputError(
            "device: cuda: Ray knows of no GPU in this cluster; add nodes with one (--wait SECONDS waits for them), or "
            "give device: auto"
        )
    if asked == "auto":
        return "cuda" if gpus else "cpu"
    return asked


def _nodes_with_gpus() -> list[tuple[int, int]]:
    """List CPUs and GPUs of each node that has a GPU."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [(int(one.get("CPU", 0)), int(one["GPU"])) for one in nodes if one.get("GPU", 0) >= 1]


def _cpus_of_nodes() -> list[int]:
    """Return the CPUs of each node that has any, largest first."""
    nodes = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    return sorted((cpus for cpus in nodes if cpus), reverse=True)


def _threads_of_a_gpu() -> int:
    """Compute the CPUs that each GPU has on its node, on whichever has the fewest."""
    return max(1, min(_less_drawing(cpus) // gpus for cpus, gpus in _nodes_with_gpus()))


def _less_drawing(cpus: int) -> int:
    """Leave one CPU of a large node to what draws text, for this command or another; small ones are needed whole."""
    return cpus - 1 if cpus >= _LARGE_NODE else cpus


def _threads_of_each(actors: int) -> int:
    """Compute the CPUs left for each actor when all are spread evenly over the nodes that have CPUs."""
    largest = _cpus_of_nodes()[:actors]
    if not largest:
        return 1
    return max(1, _less_drawing(min(largest)) // -(-actors // len(largest)))
