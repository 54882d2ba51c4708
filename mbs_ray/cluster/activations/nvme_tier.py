"""The tier on a local disk: a folder per run below ``nvme_path``, owned by a process as long as that holds its lock."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import torch

from mbs_ray.cluster.activations.slot_file import SlotFile

_PREFIX = "mbs-"
_LOCK = "lock"


class NvmeTier:
    """Hidden states in a file: while a microbatch computes, the one before is written and the next one read.

    ``module`` is async_io. Host memory is bounded by the three buffers of :class:`SlotFile`. Raises OSError as there.
    """

    def __init__(self, module: Any, nvme_path: Path) -> None:
        self._nvme_path = nvme_path
        self._folder, self._lock = _own_folder(nvme_path)
        try:
            self._file = SlotFile(module, self._folder / "activations")
        except OSError:
            self._remove()
            raise

    def keep(self, microbatch: int, hidden: torch.Tensor) -> None:
        self._file.write(microbatch, hidden)

    def fetch(self, microbatch: int, device: torch.device) -> torch.Tensor:
        hidden = self._file.read(microbatch, device)
        self._file.prefetch(microbatch + 1)
        return hidden

    def drop(self, microbatch: int) -> None:
        self._file.drop(microbatch)

    def held(self) -> int:
        return self._file.size

    def close(self) -> None:
        self._file.close()
        self._remove()

    def _remove(self) -> None:
        with _alone(self._nvme_path):
            shutil.rmtree(self._folder, ignore_errors=True)
            self._lock.close()


def remove_stale(nvme_path: Path) -> list[Path]:
    """Remove the folders of this user that killed processes left, and return their paths."""
    removed = []
    with _alone(nvme_path):
        for folder in sorted(nvme_path.glob(f"{_PREFIX}*/")):
            if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                continue
            with (folder / _LOCK).open("w") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue  # its process is alive
                shutil.rmtree(folder)
                removed.append(folder)
    return removed


def _own_folder(nvme_path: Path) -> tuple[Path, TextIO]:
    """Make a new folder; the open file holds its lock until it is closed, or the process ends."""
    with _alone(nvme_path):
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=nvme_path))
        lock = (folder / _LOCK).open("w")
        fcntl.flock(lock, fcntl.LOCK_EX)
    return folder, lock


@contextmanager
def _alone(nvme_path: Path) -> Iterator[None]:
    """Hold the common lock, so that no process takes a folder for stale that another is just making or removing."""
    with (nvme_path / f"{_PREFIX}{os.getuid()}.lock").open("w") as common:
        fcntl.flock(common, fcntl.LOCK_EX)
        yield
