"""The device of a forward, and its exact arithmetic."""

import torch


def forward_device() -> torch.device:
    """Return the device that this process computes on: its GPU, or the CPU if it has none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def exact_forward(threads: int | None) -> None:
    """Set the CPU threads of this thread's forwards (None: as many as now), and forbid TF32 in float32 products.

    Call it in the thread that computes: torch counts CPU threads separately for each thread that sets them.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32 = False
