"""DeepSpeed's asynchronous file I/O behind guards: where its handle would abort or fail silently, an error is raised.

What the guards are for (async_io of DeepSpeed 0.19.8): a size that is no multiple of the sector is cut; wait() with
nothing pending, a read behind the end of a file, memory that cannot be locked, a kernel that has no requests left, and
a handle that is dropped with something pending abort the process; nothing checks the results of the transfers.
"""

import ctypes
import errno
import mmap
import resource
import weakref
from pathlib import Path
from typing import Any

import torch

#: Offsets and sizes of transfers. Sectors have 512 bytes or 4 KiB, and a transfer must not end inside one.
ALIGNMENT = 4096
_REQUEST_BYTES = 2**20
_QUEUE_DEPTH = 32


def padded(size: int) -> int:
    """Round ``size``, in bytes, up to a multiple of :data:`ALIGNMENT`."""
    return -(-size // ALIGNMENT) * ALIGNMENT


class AioLane:
    """Transfers of one file in one direction, one at a time, and the page-locked buffers for them.

    ``module`` is async_io. Not for several threads at once.
    """

    def __init__(self, module: Any, path: Path) -> None:
        _check_requests(path)
        self._handle = module.aio_handle(_REQUEST_BYTES, _QUEUE_DEPTH, False, True, 1)
        if ALIGNMENT % self._handle.get_alignment():
            raise RuntimeError(f"async_io wants transfers of {self._handle.get_alignment()} bytes")
        self._path = path
        self._pending: list[torch.Tensor] = []
        self._buffers: list[torch.Tensor] = []
        self._release = weakref.finalize(self, _release, self._handle, self._pending, self._buffers)

    def buffer(self, size: int) -> torch.Tensor:
        """Allocate page-locked memory [size] uint8, not initialised; ``size`` must be :func:`padded`.

        Raises OSError where the process may not lock that much.
        """
        check_lockable(size)
        # A tensor made in inference mode could not be written to by other threads.
        with torch.inference_mode(False):
            buffer = self._handle.new_cpu_locked_tensor(size, torch.empty(0, dtype=torch.uint8))
        self._buffers.append(buffer)
        return buffer

    def free(self, buffer: torch.Tensor) -> None:
        """Give the memory of a buffer back; neither it nor a view of it may be used from here on."""
        if any(_overlap(buffer, pending) for pending in self._pending):
            raise RuntimeError(f"{self._path}: the buffer is being transferred")
        self._buffers[:] = [other for other in self._buffers if other is not buffer]
        self._handle.free_cpu_locked_tensor(buffer)

    def begin_write(self, content: torch.Tensor, offset: int) -> None:
        """Begin to write [n] uint8 of a buffer; it must not change until :meth:`finish`.

        The file must reach that far already. Raises OSError where it does not, or is gone.
        """
        self._begin(self._handle.async_pwrite, "write", content, offset)

    def begin_read(self, content: torch.Tensor, offset: int) -> None:
        """Begin to read [n] uint8 into a buffer, which :meth:`finish` fills. Raises OSError as for writing."""
        self._begin(self._handle.async_pread, "read", content, offset)

    def finish(self) -> None:
        """Wait for the transfer under way, if there is one."""
        _drain(self._handle, self._pending)

    def close(self) -> None:
        """Finish the transfer under way, and free every buffer."""
        self._release()

    def _begin(self, begin: Any, verb: str, content: torch.Tensor, offset: int) -> None:
        if self._pending:
            raise RuntimeError(f"{self._path}: a transfer is under way already")
        if not any(_overlap(content, buffer) for buffer in self._buffers) or content.dtype != torch.uint8:
            raise ValueError(f"{self._path}: only uint8 from a buffer of this lane can be transferred")
        if not content.is_contiguous() or any(n % ALIGNMENT for n in (content.data_ptr(), len(content), offset)):
            raise ValueError(f"{self._path}: {len(content)} bytes at {offset} are not whole units of {ALIGNMENT}")
        size, end = self._path.stat().st_size, offset + len(content)
        if size < end:
            raise OSError(errno.EIO, f"has {size} bytes, where {end} are wanted", str(self._path))
        if begin(content, str(self._path), offset) != 0:
            raise OSError(errno.EIO, f"async_io cannot {verb} it", str(self._path))
        self._pending.append(content)


def check_lockable(size: int) -> None:
    """Raise OSError where the process may not lock ``size`` more bytes of memory: the handle would abort it."""
    if resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] == resource.RLIM_INFINITY:
        return
    # Tried out, because a privileged process may lock more than the limit says.
    libc = ctypes.CDLL(None, use_errno=True)
    with mmap.mmap(-1, size) as memory:
        start = ctypes.c_char.from_buffer(memory)
        address = ctypes.c_void_p(ctypes.addressof(start))
        refused = libc.mlock(address, ctypes.c_size_t(size))
        libc.munlock(address, ctypes.c_size_t(size))
        del start
    if refused:
        raise OSError(
            errno.ENOMEM, f"{size} bytes of memory cannot be locked for transfers; raise the limit (ulimit -l)"
        )


def _check_requests(path: Path) -> None:
    """Raise OSError where the kernel has no requests left for one more handle, which has two queues."""
    used, most = (int(Path("/proc/sys/fs", name).read_text()) for name in ("aio-nr", "aio-max-nr"))
    if most - used < 2 * _QUEUE_DEPTH:
        raise OSError(errno.EAGAIN, f"{used} of {most} asynchronous requests are taken; raise fs.aio-max-nr", str(path))


def _overlap(part: torch.Tensor, whole: torch.Tensor) -> bool:
    return whole.data_ptr() <= part.data_ptr() < whole.data_ptr() + whole.nbytes


def _drain(handle: Any, pending: list[torch.Tensor]) -> None:
    if pending:
        handle.wait()
        pending.clear()


def _release(handle: Any, pending: list[torch.Tensor], buffers: list[torch.Tensor]) -> None:
    _drain(handle, pending)
    while buffers:
        handle.free_cpu_locked_tensor(buffers.pop())
