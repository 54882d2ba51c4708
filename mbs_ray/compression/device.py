"""The device of a forward, and its exact arithmetic."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from mbs_ray.errors import InputError, one_line


def forward_device(kind: str = "auto") -> torch.device:
    """Return the device that this process computes on: ``cpu``, ``cuda``, or for ``auto`` its GPU if it has one.

    Raises :class:`InputError` with the reason where it has no GPU that torch can use.
    """
    if kind == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if kind == "cuda" and (reason := why_no_cuda()):
        raise InputError(f"device: cuda: {reason}; mend that, or give device: cpu")
    return torch.device(kind)


def why_no_cuda() -> str:
    """Say why torch can use no GPU in this process; empty where it can."""
    if torch.cuda.is_available():
        return ""
    if not torch.backends.cuda.is_built():
        return f"torch {torch.__version__} is a build for CPUs"
    try:
        torch.cuda.init()
    except RuntimeError as error:
        return f"torch {torch.__version__} cannot use CUDA ({one_line(error)})"
    return "CUDA_VISIBLE_DEVICES shows it no GPU"


@contextmanager
def exact_forward(threads: int | None) -> Iterator[None]:
    """Set the CPU threads of this thread's forwards (None: as many as now), and forbid TF32 in float32 products.

    Meanwhile, on CPUs, numbers below float32's normal range are zero in this thread and those that it starts: ALiBi
    gives far tokens probabilities of 1e-40, with which a product takes six times as long as with zeros.
    Enter it in the thread that computes: torch counts CPU threads separately for each thread that sets them.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def compute_alone() -> None:
    """Let this thread compute without others, beside one that computes in many.

    Once threads of torch's OpenMP outnumber the CPUs, all of them sleep between two operations, and waking them takes
    ten times as long as the spinning ones do: 90 instead of 9 µs.
    """
    if torch.get_num_threads() != 1:
        torch.set_num_threads(1)
