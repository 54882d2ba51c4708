"""Rates of a device and its disks: figures of known devices, or measurements."""

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
#: FLOP/s of a CPU core in float32, and bytes/s of the memory of all cores.
_CORE_FLOPS, _CPU_MEMORY = 30e9, 10e9
#: Share of the vendor's figures that large products reach.
_REACHED = 0.6


@dataclass(frozen=True)
class Rates:
    """Operations or bytes per second.

    ``forward`` and ``head`` are in the dtype of the forward, ``factor`` and ``product`` in float32, ``moments`` in
    either with float32 sums; ``scores`` are the bytes of attention scores; ``link`` is between device and pinned host
    memory, ``upload`` and ``download`` between device and plain host memory. Besides products an OBS solver takes the
    seconds of ``column`` for each column, of ``compiled_column`` where they have a kernel, and every method takes
    those of ``weight`` for each weight; ``solve`` holds both by the label of a method where they were measured.

    For the experts of a mixture: ``expert_moments`` is the share of ``moments`` that the few tokens of one expert
    reach, ``expert_forward`` that of ``forward`` that all tokens reach in one expert; ``copies`` are bytes written to
    fresh host memory by copies of matrices.
    """

    forward: float
    head: float
    factor: float
    product: float
    moments: float
    scores: float
    link: float
    upload: float
    download: float
    read: float = 2e9
    write: float = 1e9
    nvme: float = 2e9
    network: float = 1e9
    column: float = 80e-6
    compiled_column: float = 12e-6
    weight: float = 5e-10
    expert_moments: float = 0.4
    expert_forward: float = 1.0
    copies: float = 2e9
    solve: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    source: str = "figures of the vendor"

    def asked(self, forward: float | None = None, disk: float | None = None) -> "Rates":
        """Return the rates with the user's ``forward`` (FLOP/s; scales head and moments too) and ``disk`` (bytes/s)."""
        rates = self
        if forward is not None:
            share = forward / rates.forward
            rates = replace(rates, forward=forward, head=rates.head * share, moments=rates.moments * share)
        return rates if disk is None else replace(rates, read=disk, write=disk)


def assumed_rates(device: str, cuda: bool, threads: int, compute_dtype: torch.dtype) -> Rates:
    """Estimate rates from the device's name (CUDA's, or an instance type's), or from CPU threads if there is no GPU."""
    if not cuda:
        flops = _CORE_FLOPS * threads
        memory = _CPU_MEMORY
        return Rates(
            flops, flops, flops, flops, flops, memory, memory, memory, memory,
            column=30e-6, compiled_column=10e-6, weight=2e-8, copies=1e9, source="assumed of a CPU",
        )  # fmt: skip
    name = next((one for one in _DEVICES if one in device), _UNKNOWN_GPU)
    half, single, memory = _DEVICES[name]
    fast = _REACHED * (single if compute_dtype == torch.float32 else half)
    exact = _REACHED * single
    memory = _REACHED * memory
    source = f"vendor's figures of {name} × {_REACHED:g}"
    return Rates(fast, 0.3 * fast, exact, exact, fast, memory, 20e9, 8e9, 2e9, source=source)
