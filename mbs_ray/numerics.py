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
    """For the connected Ray: CUDA where there is a GPU per stage; threads share the CPUs unless given."""
    resources = ray.cluster_resources()
    device = "cuda" if resources.get("GPU", 0) >= stages else "cpu"
    return Numerics(device, threads or max(1, int(resources.get("CPU", 1)) // stages))
