"""The activation store of a stage: hidden states of one run, one copy, in place by microbatch."""

import threading
from typing import Protocol

import torch


class RunAbandonedError(Exception):
    """The driver gave the run up while a stage was waiting for its input."""


class Tier(Protocol):
    """The memory of one run's hidden states. One thread fetches; others may keep other microbatches meanwhile."""

    def keep(self, microbatch: int, hidden: torch.Tensor) -> None:
        """Store a copy; the memory of an equally shaped predecessor is reused."""

    def fetch(self, microbatch: int, device: torch.device) -> torch.Tensor:
        """Return what is stored, on the device. The next index is expected to be asked for next."""

    def drop(self, microbatch: int) -> None:
        """Forget a microbatch."""

    def held(self) -> int:
        """Return the bytes of memory or disk in use."""

    def close(self) -> None:
        """Give all memory and space back; what is kept from here on is dropped."""


class ActivationStore:
    """Hidden states [microbatch, length, hidden_size] by microbatch, in the memory of a tier.

    Microbatches may arrive from another thread (the previous stage) while earlier ones are being
    computed: :meth:`get` waits for the one it is asked for. Every stored microbatch carries the
    block it is the input of, and giving out another is an error, so that a block can never be
    applied twice or left out.
    """

    def __init__(self, tier: Tier) -> None:
        self._tier = tier
        self._blocks: dict[int, int] = {}
        self._changed = threading.Condition()
        self._failure: Exception | None = None
        self.abandoned = False

    def put(self, microbatch: int, block: int, hidden: torch.Tensor) -> None:
        """Store the input of ``block``. What cannot be stored fails here, and where the run waits for it."""
        # Out of sight while its memory is overwritten.
        with self._changed:
            self._blocks.pop(microbatch, None)
        try:
            self._tier.keep(microbatch, hidden.detach())
        except Exception as error:
            with self._changed:
                self._failure = error
                self._changed.notify_all()
            raise
        with self._changed:
            self._blocks[microbatch] = block
            self._changed.notify_all()

    def holds(self, microbatch: int) -> bool:
        """Return whether a microbatch is there."""
        with self._changed:
            return microbatch in self._blocks

    def wait(self, microbatch: int) -> None:
        """Wait until a microbatch is there. Raises :class:`RunAbandonedError`, or the error why one was not stored."""
        with self._changed:
            self._changed.wait_for(lambda: self.abandoned or self._failure or microbatch in self._blocks)
            if self.abandoned:
                raise RunAbandonedError
            if self._failure:
                raise self._failure

    def get(self, microbatch: int, block: int, device: torch.device) -> torch.Tensor:
        """Wait for the input of ``block``; return it on the device. Do not write into it: it may be the store's own."""
        self.wait(microbatch)
        with self._changed:
            stored = self._blocks[microbatch]
        if stored != block:
            raise RuntimeError(f"microbatch {microbatch} is the input of block {stored}, not of block {block}")
        return self._tier.fetch(microbatch, device)

    def pop(self, microbatch: int) -> None:
        """Forget a microbatch that the next stage holds."""
        with self._changed:
            self._blocks.pop(microbatch, None)
        self._tier.drop(microbatch)

    def abandon(self) -> None:
        """Give the run up: whoever waits for a microbatch gets :class:`RunAbandonedError`."""
        with self._changed:
            self.abandoned = True
            self._changed.notify_all()

    def held(self) -> int:
        """Return the bytes that the tier holds for the run."""
        return self._tier.held()

    def close(self) -> None:
        """Release what the tier holds for the run, at its end."""
        self._tier.close()
