"""What is resolved once the cluster is known and can change bits: device, threads, type of the forward."""

from dataclasses import dataclass

import ray
import torch


@dataclass(frozen=True)
class Numerics:
    """Kind of device of the stages, and CPU threads of each."""

    device: str
    threads: int

    def compute_dtype(self, asked: str, stored: torch.dtype) -> str:
        """Type of the forward: ``auto`` is the checkpoint's on CUDA and float32 on the CPU."""
        if asked != "auto":
            return asked
        return "float32" if self.device == "cpu" else str(stored).removeprefix("torch.")


def resolve_numerics(stages: int, threads: int | None) -> Numerics:
    """For the connected Ray: CUDA where there is a GPU per stage; stages on a node share its CPUs unless told."""
    resources = ray.cluster_resources()
    device = "cuda" if resources.get("GPU", 0) >= stages else "cpu"
    return Numerics(device, threads or _threads_of_each(stages))


def _threads_of_each(stages: int) -> int:
    """As many as every stage finds when they are spread evenly over the nodes that have CPUs."""
    nodes = [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]]
    largest = sorted((int(cpus) for cpus in nodes if cpus), reverse=True)[:stages]
    if not largest:
        return 1
    return max(1, min(largest) // -(-stages // len(largest)))
