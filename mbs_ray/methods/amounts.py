"""The amount of a method: the one field that says how much it takes away, and a value of it for each linear."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from mbs_ray.errors import InputError
from mbs_ray.methods.grid import Quantization
from mbs_ray.methods.registry import Method
from mbs_ray.methods.sparsity import Pruning


def amount_field(method: Method, *, bits: bool = False) -> str | None:
    """Return the field of a method that can differ from linear to linear; None where it has none.

    ``sparsity`` where single weights are pruned, else ``bits``, and that in any case where ``bits`` are asked for.
    """
    if isinstance(method, Pruning) and method.kept_of_group is None and not bits:
        return "sparsity"
    return "bits" if isinstance(method, Quantization) else None


@dataclass(frozen=True)
class Amounts:
    """What each linear of a model is given of a method's ``field``: block → linear → value."""

    field: str
    of_block: Mapping[int, Mapping[str, float]]

    def methods(self, method: Method, block: int) -> dict[str, Method]:
        """Return the method of each linear of a block. Raises InputError where the method does not take a value."""
        return {linear: with_amount(method, self.field, value) for linear, value in self.of_block[block].items()}

    @property
    def least(self) -> float:
        """The smallest amount of a linear."""
        return min(value for own in self.of_block.values() for value in own.values())

    @property
    def most(self) -> float:
        """The largest amount of a linear."""
        return max(value for own in self.of_block.values() for value in own.values())

    def plain(self) -> dict[str, Any]:
        """Return the amounts as a mapping that JSON can hold."""
        return {"field": self.field, "of_block": {str(block): dict(one) for block, one in self.of_block.items()}}

    @classmethod
    def from_plain(cls, content: Mapping[str, Any]) -> "Amounts":
        """Rebuild amounts from what :meth:`plain` made."""
        return cls(content["field"], {int(block): dict(one) for block, one in content["of_block"].items()})


def with_amount(method: Method, field: str, value: float) -> Method:
    """Return the method with this amount; bits are whole numbers."""
    if field == "bits" and value != int(value):
        raise InputError(f"{method.name}: bits must be a whole number, got {value!r}")
    known: Any = method  # a dataclass, which the protocol does not say
    own: Method = replace(known, **{field: int(value) if field == "bits" else value})
    return own
