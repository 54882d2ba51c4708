"""The activation store of a stage: hidden states of one run, one copy, in place by microbatch."""

import threading

import torch


class RunAbandonedError(Exception):
    """The driver gave the run up while a stage was waiting for its input."""


class ActivationStore:
    """Hidden states [microbatch, length, hidden_size] by microbatch, in host memory.

    Microbatches may arrive from another thread (the previous stage) while earlier ones are being
    computed: :meth:`get` waits for the one it is asked for. Every stored microbatch carries the
    block it is the input of, and giving out another is an error, so that a block can never be
    applied twice or left out.
    """

    def __init__(self) -> None:
        self._stored: dict[int, tuple[int, torch.Tensor]] = {}
        self._changed = threading.Condition()
        self.abandoned = False

    def put(self, microbatch: int, block: int, hidden: torch.Tensor) -> None:
        """Store the input of ``block``; memory of an equally shaped predecessor is used again."""
        with self._changed:
            previous = self._stored.get(microbatch)
            if previous is not None and previous[1].shape == hidden.shape:
                self._stored[microbatch] = (block, previous[1].copy_(hidden))
            else:
                self._stored[microbatch] = (block, hidden.detach().to("cpu", copy=True))
            self._changed.notify_all()

    def get(self, microbatch: int, block: int, device: torch.device) -> torch.Tensor:
        """The input of ``block``, on the device. Do not write into it: on the CPU it is the store's own."""
        with self._changed:
            self._changed.wait_for(lambda: self.abandoned or microbatch in self._stored)
            if self.abandoned:
                raise RunAbandonedError
            stored, hidden = self._stored[microbatch]
        if stored != block:
            raise RuntimeError(f"microbatch {microbatch} is the input of block {stored}, not of block {block}")
        return hidden.to(device)

    def pop(self, microbatch: int) -> None:
        """Forget a microbatch that the next stage holds."""
        with self._changed:
            self._stored.pop(microbatch, None)

    def abandon(self) -> None:
        with self._changed:
            self.abandoned = True
            self._changed.notify_all()
