"""Host memory of a stage: giving freed memory back to the system, and how much Ray lets a node use."""

import ctypes
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # <malloc.h>
_THRESHOLD_BYTES = 32 * 2**20
#: For the processes of stages: torch asks for large pages, which cost a fraction of the faults of small ones.
LARGE_PAGES = {"THP_MEM_ALLOC_ENABLE": "1"}


#: Above this share of a node's memory Ray's memory monitor kills, where RAY_memory_usage_threshold is not set.
KILL_SHARE = 0.95
#: Share that stays free below: for what comes between two looks of the monitor, and for other processes.
RESERVED_SHARE = 0.03


@dataclass(frozen=True)
class HostMemory:
    """The memory of a node: bytes in all, bytes in use (file cache not counted), and the share at which Ray kills."""

    total: int
    used: int = 0
    kill_share: float = KILL_SHARE

    @property
    def budget(self) -> int:
        """Bytes that may still be used."""
        return max(0, round((self.kill_share - RESERVED_SHARE) * self.total) - self.used)


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


def host_memory() -> HostMemory:
    """Return the memory of this node, or of the control group of this process whose budget is less."""
    share = _kill_share(os.environ)
    sizes = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    total, free = (int(sizes[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    groups = memory_of_groups(Path("/sys/fs/cgroup"), Path("/proc/self/cgroup").read_text())
    every = [HostMemory(total, total - free, share), *(HostMemory(*one, share) for one in groups)]
    return min(every, key=lambda one: one.budget)


def _kill_share(environment: Mapping[str, str]) -> float:
    """Read as Ray does what its processes, which inherit it from their node's, were started with."""
    if environment.get("RAY_memory_monitor_refresh_ms") == "0":
        return 1.0
    try:
        return min(1.0, float(environment.get("RAY_memory_usage_threshold", KILL_SHARE)))
    except ValueError:
        return KILL_SHARE


def memory_of_groups(root: Path, membership: str) -> Iterator[tuple[int, int]]:
    """Yield limit and use in bytes of each limited control group (version 2) of a process, file cache not counted.

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
            yield int(most), used
