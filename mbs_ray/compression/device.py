"""The device of a forward, and its exact arithmetic."""

import torch


def forward_device() -> torch.device:
    """Return the device that this process computes on: its GPU, or the CPU where it was given none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def exact_forward(threads: int | None) -> None:
    """Have this thread's forwards take so many CPU threads (None: as many as now), and float32 products no TF32.

    To be called in the thread that computes: torch counts CPU threads for each thread that asks for some.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32 = False
