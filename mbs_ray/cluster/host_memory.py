"""Host memory of a stage: kept at what it holds, and how much more there is."""

import ctypes
from collections.abc import Iterator
from pathlib import Path

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


def available_host_memory() -> int:
    """Bytes this process may still take: what the machine has, and what the limits of its control groups leave."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    machine = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    return min([machine, *left_by_groups(Path("/sys/fs/cgroup"), Path("/proc/self/cgroup").read_text())])


def left_by_groups(root: Path, membership: str) -> Iterator[int]:
    """What each limited control group (version 2) of a process leaves; file cache can be taken back.

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
