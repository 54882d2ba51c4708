"""Properties of machine and arithmetic that can change bits: kind of device, threads, type of the forward."""

from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class Numerics:
    """Kind of device of the actors (``cuda`` or ``cpu``), and CPU threads of each.

    For the signature, ``gpu``: names and compute capabilities of the GPUs, empty on CPUs; ``kernel``: what solves
    linears.
    """

    device: str
    threads: int
    gpu: str = ""
    kernel: str = field(default="", compare=False)

    def compute_dtype(self, asked: str, stored: torch.dtype) -> str:
        """Return the type of the forward: ``auto`` is the checkpoint's on CUDA and float32 on the CPU."""
        if asked != "auto":
            return asked
        return "float32" if self.device == "cpu" else str(stored).removeprefix("torch.")
