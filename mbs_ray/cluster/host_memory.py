"""Keeps a stage's host memory at what it holds."""

import ctypes

_M_MMAP_THRESHOLD = -3  # <malloc.h>
_THRESHOLD_BYTES = 2**20


def return_freed_memory() -> bool:
    """Make freed tensors go back to the system at once; False where the C library is not glibc.

    glibc raises its threshold for memory of its own (mmap) to the largest block that was freed, up to 32 MiB, and
    then keeps blocks below it on a heap that never shrinks: a stage held four times the memory it used. A threshold
    that is set once stays.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _THRESHOLD_BYTES))
