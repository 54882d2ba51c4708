"""Host memory of a stage: giving freed memory back to the system, and how much is available."""

import ctypes
from collections.abc import Iterator
from pathlib import Path

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # <malloc.h>
_THRESHOLD_BYTES = 32 * 2**20
#: For the processes of stages: torch asks for large pages, which cost a fraction of the faults of small ones.
LARGE_PAGES = {"THP_MEM_ALLOC_ENABLE": "1"}


def return_large_tensors() -> bool:
    """Make freed tensors of 32 MiB and more go back to the system at once; False where the C library is not glibc.

    Smaller ones stay for reuse: giving back and faulting in again every tensor of a forward took more time than
    the forward. What accumulates of them is given back by :func:`return_freed_memory`. glibc would raise its
    threshold by itself; one that was set stays.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _THRESHOLD_BYTES) and mallopt(_M_TRIM_THRESHOLD, 2 * _THRESHOLD_BYTES))


def return_freed_memory() -> None:
    """Give freed memory back to the system; cheap, but not for every microbatch. Does nothing without glibc."""
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):
        return


def pinned_size(size: int) -> int:
    """Return the bytes that torch allocates for ``size`` bytes of pinned memory: a power of two."""
    return 1 << (size - 1).bit_length()


def available_host_memory() -> int:
    """Return the bytes this process may still use: the least of the machine's and what its control groups leave."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    machine = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    return min([machine, *left_by_groups(Path("/sys/fs/cgroup"), Path("/proc/self/cgroup").read_text())])


def left_by_groups(root: Path, membership: str) -> Iterator[int]:
    """Yield the bytes that each limited control group (version 2) of a process leaves; file cache counts as free.

    ``membership`` is the text of /proc/<process>/cgroup.
    """
    path = next((line[3:] for line in membership.splitlines() if line.startswith("0::")), None)
    if path is None:
        return
    own = root / path.lstrip("/")
    for group in (own, *own.parents):
        limit = group / "memory.max"
        if limit.is_file() and (most := limit.read_text().strip()) != "max":
            stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            used = int((group / "memory.current").read_text()) - int(stat.get("inactive_file", 0))
            yield max(0, int(most) - used)
