"""Activations in host memory, pinned where there is a GPU."""

from collections.abc import Callable

import torch


class MemoryTier:
    """Hidden states in memory of ``device``: the stage's own, or the host's.

    Host memory of a stage on CUDA is pinned by DeepSpeed's accelerator.
    """

    def __init__(self, device: torch.device, pinned: bool = False) -> None:
        self._empty = _pinned if pinned else _plain(device)
        self._held: dict[int, torch.Tensor] = {}
        self._closed = False

    def keep(self, microbatch: int, hidden: torch.Tensor) -> None:
        place = self._held.get(microbatch)
        if place is None or (place.shape, place.dtype) != (hidden.shape, hidden.dtype):
            place = self._empty(hidden.shape, hidden.dtype)
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


def _plain(device: torch.device) -> Callable[[torch.Size, torch.dtype], torch.Tensor]:
    return lambda shape, dtype: torch.empty(shape, dtype=dtype, device=device)


def _pinned(shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
    # Not at the top: it takes seconds, and a CPU has no use for it.
    from deepspeed.accelerator import get_accelerator

    return get_accelerator().pin_memory(torch.empty(shape, dtype=dtype), make_copy=False)
