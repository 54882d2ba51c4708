"""Tensors in the slots of one file, written and read while others compute."""

import errno
import os
import shutil
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mbs_ray.cluster.activations.aio import AioLane, padded

#: Page-locked buffers of the largest tensor: two to write from and one to read into.
BUFFERS = 3


@dataclass(frozen=True, eq=False)
class _Slot:
    """The tensor last written to a slot: its offset, true shape and type. ``checksum`` is that of its padded bytes."""

    offset: int
    shape: torch.Size
    dtype: torch.dtype
    nbytes: int
    checksum: int


class SlotFile:
    """A new file that holds one tensor per slot, with double buffering: one write and one read are under way at most.

    Memory: :data:`BUFFERS`, whatever the number of slots. Several threads may write while one reads. ``module`` is
    async_io. Raises OSError naming the file where it, or the space for it, is missing, and where other bytes come
    back than were written.
    """

    def __init__(self, module: Any, path: Path) -> None:
        self.path = path
        self._slots: dict[int, _Slot] = {}
        #: Size of the file in bytes.
        self.size = 0
        self._closed = False
        # Opened as the transfers will open it: a file system without direct I/O fails now.
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_DIRECT, 0o600)
        self._writer, self._reader = AioLane(module, path), AioLane(module, path)
        self._writing, self._reading = threading.Lock(), threading.Lock()
        # Double buffering. Outgoing: one buffer is on its way to the disk while the next tensor is copied into the
        # other; then they swap. Incoming: one buffer, which prefetch() fills while the caller computes with the copy
        # that read() made. So microbatch j is computed while j - 1 is written and j + 1 is read.
        #: The next to be filled comes first.
        self._outgoing: list[torch.Tensor | None] = [None, None]
        self._incoming: torch.Tensor | None = None
        self._being_written: _Slot | None = None
        self._being_read: _Slot | None = None

    def write(self, slot: int, tensor: torch.Tensor) -> None:
        """Put a copy of the tensor (of any device and layout) in the slot; the transfer continues after the return.

        Does nothing where the file is closed.
        """
        with self._writing:
            if self._closed:
                return
            spare, size = self._outgoing[0], padded(tensor.nbytes)
            if spare is None or len(spare) < size:
                spare = self._outgoing[0] = _larger(self._writer, spare, size)
            content = spare[:size]
            _typed(content, tensor.nbytes, tensor.dtype, tensor.shape).copy_(tensor)
            content[tensor.nbytes :].zero_()
            offset = self._place(slot, size)
            written = _Slot(offset, tensor.shape, tensor.dtype, tensor.nbytes, _checksum(content))
            self._writer.finish()
            self._writer.begin_write(content, offset)
            self._being_written = self._slots[slot] = written
            self._outgoing.reverse()

    def read(self, slot: int, device: torch.device) -> torch.Tensor:
        """Return a fresh copy, on the device, of the tensor in the slot. Raises KeyError where the slot is empty."""
        with self._reading:
            wanted = self._slots[slot]
            if self._being_read is not wanted:
                self._begin_read(wanted)
            self._reader.finish()
            self._being_read = None
            assert self._incoming is not None
            content = self._incoming[: padded(wanted.nbytes)]
            # async_io does not report transfers that failed: the disk may be full or broken.
            if _checksum(content) != wanted.checksum:
                message = f"the bytes at {wanted.offset} are not those that were written"
                raise OSError(errno.EIO, message, str(self.path))
            return _typed(content, wanted.nbytes, wanted.dtype, wanted.shape).to(device, copy=True)

    def prefetch(self, slot: int) -> None:
        """Begin to read the slot that will be asked for next; does nothing where it is not written out yet."""
        with self._reading:
            wanted = self._slots.get(slot)
            if wanted is not None and wanted is not self._being_read and wanted is not self._being_written:
                self._begin_read(wanted)

    def drop(self, slot: int) -> None:
        """Forget what is in a slot."""
        self._slots.pop(slot, None)

    def close(self) -> None:
        """Wait for transfers under way, free the buffers, remove the file."""
        with self._writing, self._reading:
            if self._closed:
                return
            self._closed = True
            self._writer.close()
            self._reader.close()
            os.close(self._file)
            self.path.unlink(missing_ok=True)

    def _begin_read(self, wanted: _Slot) -> None:
        self._being_read = None
        self._reader.finish()
        size = padded(wanted.nbytes)
        if self._incoming is None or len(self._incoming) < size:
            self._incoming = _larger(self._reader, self._incoming, size)
        # A slot on its way out is not on the disk yet.
        with self._writing:
            if self._being_written is wanted:
                self._writer.finish()
                self._being_written = None
        self._reader.begin_read(self._incoming[:size], wanted.offset)
        self._being_read = wanted

    def _place(self, slot: int, size: int) -> int:
        """Return the slot's offset: the same as before, or new space, reserved before anything is written."""
        before = self._slots.get(slot)
        if before is not None and padded(before.nbytes) == size:
            return before.offset
        if shutil.disk_usage(self.path.parent).free < size:
            raise OSError(errno.ENOSPC, f"the disk has no room for {size} bytes more", str(self.path))
        try:
            os.posix_fallocate(self._file, self.size, size)
        except OSError as error:
            raise OSError(error.errno, f"no room for {size} bytes more: {error.strerror}", str(self.path)) from error
        self.size += size
        return self.size - size


def _larger(lane: AioLane, buffer: torch.Tensor | None, size: int) -> torch.Tensor:
    if buffer is not None:
        lane.free(buffer)
    return lane.buffer(size)


def _typed(content: torch.Tensor, nbytes: int, dtype: torch.dtype, shape: torch.Size) -> torch.Tensor:
    return content[:nbytes].view(dtype).view(shape)


def _checksum(content: torch.Tensor) -> int:
    return int(np.add.reduce(content.numpy().view(np.int64)))
