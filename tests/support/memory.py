"""What the machine's memory is used for."""

import psutil


def used_share(more: float = 0.0) -> float:
    """Compute the share of the machine's memory that is in use once so many bytes more are."""
    memory = psutil.virtual_memory()
    return float((memory.total - memory.available + more) / memory.total)
