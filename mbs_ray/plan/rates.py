"""How fast a device and its disks are: figures of known devices, or what was measured."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch

#: FLOP/s in 16 bits and in float32 (without TF32), bytes/s of memory: vendors' figures for dense matrices.
_DEVICES = {
    "H200": (989e12, 67e12, 4.8e12),
    "H100": (989e12, 67e12, 3.35e12),
    "A100": (312e12, 19.5e12, 2.0e12),
    "L40S": (362e12, 91.6e12, 0.864e12),
    "A10G": (70e12, 31.2e12, 0.6e12),
}
_UNKNOWN_GPU = "A100"
#: Of a CPU core in float32, and of the memory of all cores.
_CORE_FLOPS, _CPU_MEMORY = 30e9, 10e9
#: What large products reach of the vendor's figures.
_REACHED = 0.6


@dataclass(frozen=True)
class Rates:
    """Operations or bytes in a second.

    ``forward`` and ``head`` are in the type of the forward, ``exact`` in float32, ``moments`` in either with float32
    sums; ``scores`` are the bytes of attention scores, ``weights`` those that a solver without factor visits;
    ``link`` is between device and host; ``column`` is seconds that a solver takes for a column whatever its length.
    ``solve`` holds, by the label of a method, the seconds for an operation (with a factor) or a weight (without) where
    they were measured.
    """

    forward: float
    head: float
    exact: float
    moments: float
    scores: float
    weights: float
    link: float
    read: float = 2e9
    write: float = 1e9
    nvme: float = 2e9
    network: float = 1e9
    column: float = 60e-6
    solve: Mapping[str, float] = field(default_factory=dict)
    source: str = "figures of the vendor"

    def asked(self, forward: float | None = None, disk: float | None = None) -> "Rates":
        """With what the user says instead."""
        rates = self
        if forward is not None:
            share = forward / rates.forward
            rates = replace(rates, forward=forward, head=rates.head * share, moments=rates.moments * share)
        return rates if disk is None else replace(rates, read=disk, write=disk)


def assumed_rates(device: str, cuda: bool, threads: int, compute_dtype: torch.dtype) -> Rates:
    """Of a device by its name (the one of CUDA, or of an instance type); of CPU threads where there is no GPU."""
    if not cuda:
        flops = _CORE_FLOPS * threads
        memory = _CPU_MEMORY
        return Rates(flops, flops, flops, flops, memory, memory / 100, memory, column=30e-6, source="assumed of a CPU")
    name = next((one for one in _DEVICES if one in device), _UNKNOWN_GPU)
    half, single, memory = _DEVICES[name]
    fast = _REACHED * (single if compute_dtype == torch.float32 else half)
    exact = _REACHED * single
    memory = _REACHED * memory
    source = f"vendor's figures of {name} × {_REACHED:g}"
    return Rates(fast, 0.5 * fast, exact, fast, memory, memory / 100, 20e9, source=source)
