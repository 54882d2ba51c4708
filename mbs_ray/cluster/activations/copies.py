"""Copies between pinned host memory and a GPU beside what it computes: a stream for each direction."""

from typing import Protocol

import torch


class Copy(Protocol):
    """A copy, or other work of the device, that is under way."""

    def before_computing(self) -> None:
        """Let what the device is told to compute from here on wait for the copy; the host does not wait."""

    def wait(self) -> None:
        """Return when it is done."""


class Copies(Protocol):
    """Both directions between the host's memory and a device's. Copies of one direction follow each other."""

    def is_there(self, tensor: torch.Tensor) -> bool:
        """Return whether a tensor is in the memory of the device."""

    def computed(self) -> Copy:
        """Return what is done once the device has computed all that it was told so far."""

    def up(self, source: torch.Tensor, after: Copy | None) -> tuple[torch.Tensor, Copy]:
        """Begin to copy to the device, ``after`` what fills the source."""

    def down(self, source: torch.Tensor, into: torch.Tensor) -> Copy:
        """Begin to copy from the device, after what it was told to compute so far."""


class _CudaCopy:
    def __init__(self, event: torch.cuda.Event, content: torch.Tensor | None = None) -> None:
        self.event, self._content = event, content

    def before_computing(self) -> None:
        computing = torch.cuda.current_stream()
        computing.wait_event(self.event)
        if self._content is not None:
            # Its memory is the side stream's: not to be given away before what computes with it is done.
            self._content.record_stream(computing)

    def wait(self) -> None:
        self.event.synchronize()


class CudaCopies:
    """Copies on two streams of the current CUDA device; the host's tensors are to be pinned."""

    def __init__(self) -> None:
        self._up, self._down = torch.cuda.Stream(), torch.cuda.Stream()

    def is_there(self, tensor: torch.Tensor) -> bool:
        return tensor.is_cuda

    def computed(self) -> Copy:
        return _CudaCopy(torch.cuda.current_stream().record_event())

    def up(self, source: torch.Tensor, after: Copy | None) -> tuple[torch.Tensor, Copy]:
        if isinstance(after, _CudaCopy):
            self._up.wait_event(after.event)
        with torch.cuda.stream(self._up):
            content = source.to("cuda", non_blocking=True)
        return content, _CudaCopy(self._up.record_event(), content)

    def down(self, source: torch.Tensor, into: torch.Tensor) -> Copy:
        self._down.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._down):
            into.copy_(source, non_blocking=True)
        source.record_stream(self._down)
        return _CudaCopy(self._down.record_event())
