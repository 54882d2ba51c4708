"""Activations in memory: the stage's own, or the host's, pinned where there is a GPU."""

import threading
from collections.abc import Callable

import torch

from mbs_ray.cluster.activations.copies import Copies, Copy


class MemoryTier:
    """Hidden states in memory of ``device``."""

    def __init__(self, device: torch.device) -> None:
        self._empty = _plain(device)
        self._held: dict[int, torch.Tensor] = {}
        self._closed = False

    def keep(self, microbatch: int, hidden: torch.Tensor) -> None:
        place = self._place(microbatch, hidden)
        place.copy_(hidden)
        if not self._closed:
            self._held[microbatch] = place

    def fetch(self, microbatch: int, device: torch.device) -> torch.Tensor:
        return self._held[microbatch].to(device)

    def drop(self, microbatch: int) -> None:
        self._held.pop(microbatch, None)

    def held(self) -> int:
        # Other threads may keep and drop meanwhile.
        return sum(place.nbytes for place in list(self._held.values()))

    def close(self) -> None:
        self._closed = True
        self._held.clear()

    def _place(self, microbatch: int, hidden: torch.Tensor) -> torch.Tensor:
        place = self._held.get(microbatch)
        if place is None or (place.shape, place.dtype) != (hidden.shape, hidden.dtype):
            return self._empty(hidden.shape, hidden.dtype)
        return place


#: Microbatches on the device beside the one that is computed: the next two, on their way up, and the last one, down.
COPIES = 3


class PinnedTier(MemoryTier):
    """Hidden states in host memory that DeepSpeed's accelerator pins, copied while the device computes.

    While a microbatch is computed, the one before comes down and the next one goes up. The host waits for the device
    before it is told more than two at a time, so that this takes the memory of :data:`COPIES` microbatches more.
    """

    def __init__(self, copies: Copies) -> None:
        super().__init__(torch.device("cpu"))
        self._empty = _pinned
        self._copies = copies
        #: The last copy into the place of a microbatch.
        self._coming: dict[int, Copy] = {}
        # The microbatch that is expected to be asked for next. What is kept replaces it, so both change under a lock.
        self._ahead: tuple[int, torch.Tensor, Copy] | None = None
        self._changing = threading.Lock()
        #: What the device was still at when a microbatch was last fetched, and kept.
        self._fetched: Copy | None = None
        self._kept: Copy | None = None

    def keep(self, microbatch: int, hidden: torch.Tensor) -> None:
        place = self._place(microbatch, hidden)
        if self._copies.is_there(hidden):
            before, self._kept = self._kept, self._copies.down(hidden, place)
            self._coming[microbatch] = self._kept
            if before is not None:
                before.wait()
        else:
            self._wait(microbatch)
            place.copy_(hidden)
        with self._changing:
            if self._ahead is not None and self._ahead[0] == microbatch:
                self._ahead = None
            if not self._closed:
                self._held[microbatch] = place

    def fetch(self, microbatch: int, device: torch.device) -> torch.Tensor:
        """Return the microbatch: in host memory as it lies there, or on its way up, and begin with the next."""
        if device.type == "cpu":
            self._wait(microbatch)
            return self._held[microbatch]
        before, self._fetched = self._fetched, self._copies.computed()
        if before is not None:
            before.wait()
        with self._changing:
            ahead, self._ahead = self._ahead, None
            if ahead is None or ahead[0] != microbatch:
                ahead = self._begin(microbatch)
            if microbatch + 1 in self._held:
                self._ahead = self._begin(microbatch + 1)
        _, content, copy = ahead
        copy.before_computing()
        return content

    def drop(self, microbatch: int) -> None:
        self._wait(microbatch)
        with self._changing:
            if self._ahead is not None and self._ahead[0] == microbatch:
                self._forget_ahead()
            super().drop(microbatch)

    def close(self) -> None:
        for microbatch in list(self._coming):
            self._wait(microbatch)
        with self._changing:
            self._forget_ahead()
            super().close()

    def _begin(self, microbatch: int) -> tuple[int, torch.Tensor, Copy]:
        return microbatch, *self._copies.up(self._held[microbatch], self._coming.get(microbatch))

    def _forget_ahead(self) -> None:
        """Free its memory on the device; the host's may be freed, too, once it is not read any more."""
        if self._ahead is not None:
            self._ahead[2].wait()
            self._ahead = None

    def _wait(self, microbatch: int) -> None:
        if (copy := self._coming.pop(microbatch, None)) is not None:
            copy.wait()


def _plain(device: torch.device) -> Callable[[torch.Size, torch.dtype], torch.Tensor]:
    return lambda shape, dtype: torch.empty(shape, dtype=dtype, device=device)


def _pinned(shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
    # Not at the top: it takes seconds, and a CPU has no use for it.
    from deepspeed.accelerator import get_accelerator

    return get_accelerator().pin_memory(torch.empty(shape, dtype=dtype), make_copy=False)
