"""Where the tensors of a block lie in the checkpoint, and the way there and back."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from mbs_ray.model.checkpoint import Checkpoint, TensorInfo
from mbs_ray.model.linears import turned


@dataclass(frozen=True)
class Slot:
    """Place of a tensor in the checkpoint: ``stored``, or the ``rows`` of one ``expert`` in it.

    ``transposed``: the weight lies there as [columns, rows].
    """

    stored: str
    transposed: bool = False
    expert: int | None = None
    rows: slice | None = None

    def take(self, tensor: torch.Tensor) -> torch.Tensor:
        """Take a tensor out of the stored one; a weight as [rows, columns]."""
        if self.expert is None:
            return turned(tensor) if self.transposed else tensor
        return self._part(tensor[self.expert]).clone(memory_format=torch.contiguous_format)

    def read(self, checkpoint: Checkpoint) -> torch.Tensor:
        """Read a tensor as :meth:`take` does; of a stored one that holds all experts, only the part of its own."""
        if self.expert is None:
            return self.take(checkpoint.read(self.stored))
        own = checkpoint.read_rows(self.stored, self.expert, self.expert + 1)[0]
        return self._part(own).clone(memory_format=torch.contiguous_format)

    def put(self, tensor: torch.Tensor, stored: torch.Tensor) -> None:
        """Put a tensor back into its part of the stored one."""
        self._part(stored[self.expert]).copy_(tensor)

    def _part(self, own: torch.Tensor) -> torch.Tensor:
        matrix = own.t() if self.transposed else own
        return matrix if self.rows is None else matrix[self.rows]


def read_slots(slots: Mapping[str, Slot], checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """Read the tensors of a block by the names of its slots, one after the other: nothing is held twice."""
    return {name: slot.read(checkpoint) for name, slot in slots.items()}


def from_stored(slots: Mapping[str, Slot], stored: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Convert the tensors of a block, given by stored name, to those by the names of its slots."""
    return {name: slot.take(stored[slot.stored]) for name, slot in slots.items()}


def to_stored(
    slots: Mapping[str, Slot], tensors: Mapping[str, torch.Tensor], infos: Mapping[str, TensorInfo]
) -> dict[str, torch.Tensor]:
    """Convert the tensors of :func:`from_stored` back; ``infos`` say of stored tensors what they are."""
    stored: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        slot = slots[name]
        if slot.expert is None:
            stored[slot.stored] = slot.take(tensor)
            continue
        if slot.stored not in stored:
            stored[slot.stored] = torch.empty(infos[slot.stored].shape, dtype=tensor.dtype)
        slot.put(tensor, stored[slot.stored])
    return stored
