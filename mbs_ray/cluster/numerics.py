"""What is resolved once the cluster is known and can change bits: device, threads, type of the forward."""

from dataclasses import dataclass

import ray
import torch


@dataclass(frozen=True)
class Numerics:
    """Kind of device of the actors, and CPU threads of each."""

    device: str
    threads: int

    def compute_dtype(self, asked: str, stored: torch.dtype) -> str:
        """Type of the forward: ``auto`` is the checkpoint's on CUDA and float32 on the CPU."""
        if asked != "auto":
            return asked
        return "float32" if self.device == "cpu" else str(stored).removeprefix("torch.")


def resolve_numerics(actors: int, threads: int | None) -> Numerics:
    """For the connected Ray: CUDA where there are GPUs; actors on a node share its CPUs unless told."""
    return Numerics("cuda" if _gpus() else "cpu", threads or _threads_of_each(actors))


def room_for_actors(threads: int | None) -> int:
    """How many actors the connected Ray keeps busy: one on each GPU, else one on each node, or on ``threads`` CPUs."""
    return _gpus() or sum(cpus // threads if threads else 1 for cpus in _cpus_of_nodes())


def _gpus() -> int:
    return int(ray.cluster_resources().get("GPU", 0))


def _cpus_of_nodes() -> list[int]:
    """Of the nodes that have any, the largest first."""
    nodes = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    return sorted((cpus for cpus in nodes if cpus), reverse=True)


def _threads_of_each(actors: int) -> int:
    """As many as every actor finds when they are spread evenly over the nodes that have CPUs."""
    largest = _cpus_of_nodes()[:actors]
    if not largest:
        return 1
    return max(1, min(largest) // -(-actors // len(largest)))
