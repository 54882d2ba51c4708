"""How many bits a weight of a run's compressed linears takes, so that pruning and rounding compare at equal size."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mbs_ray.files import own_content, read_json
from mbs_ray.methods import Amounts
from mbs_ray.model.packed import IntegerScheme
from mbs_ray.run.directory import RunDirectory

#: Bits of a weight that is not rounded, and of a scale: in every model alike, whatever type its checkpoint has.
PLAIN = 16
#: The packed form fills words of so many bits.
_WORD = 32


@dataclass(frozen=True)
class StoredSize:
    """Bits per weight of the compressed linears, scales and zero points included.

    ``stored``: in the form that is written, where zeros are weights like any other. ``bitmask``: with a bit for each
    weight that says whether it is kept, and the kept ones alone; None for a method that does not prune.
    """

    stored: float
    bitmask: float | None

    @property
    def least(self) -> float:
        """The smaller of both."""
        return self.stored if self.bitmask is None else min(self.stored, self.bitmask)


def stored_size(directory: RunDirectory) -> StoredSize | None:
    """Count the bits of a finished run from the reports of its blocks; None where it left none, or no card."""
    linears = list(_linears(directory))
    card = directory.card()
    if not linears or card is None:
        return None
    amounts = None if card.budget is None else Amounts.from_plain(card.budget["amounts"])
    widths = amounts.of_block if amounts is not None and amounts.field == "bits" else None
    weights, stored, bitmask = 0, 0.0, 0.0
    for block, linear in linears:
        rows, columns = int(linear["rows"]), int(linear["columns"])
        scheme = IntegerScheme.of(card.method)
        bits = PLAIN if scheme is None else scheme.bits if widths is None else int(widths[block][linear["name"]])
        around = 0.0 if scheme is None else _scales(rows, columns, bits, scheme)
        words = rows * columns * PLAIN if scheme is None else rows * _WORD * math.ceil(columns * bits / _WORD)
        weights += rows * columns
        stored += words + around
        bitmask += rows * columns * (1 + (1 - float(linear["sparsity"])) * bits) + around
    prunes = card.method.get("sparsity") is not None
    return StoredSize(stored / weights, bitmask / weights if prunes else None)


def _scales(rows: int, columns: int, bits: int, scheme: IntegerScheme) -> float:
    """Count the bits of a linear's scales and, unless symmetric, of its zero points, which are packed as codes are."""
    groups = columns // (scheme.group_size or columns)
    zeros = 0 if scheme.symmetric else _WORD * math.ceil(rows * bits / _WORD)
    return groups * (rows * PLAIN + zeros)


def _linears(directory: RunDirectory) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Read what the reports of blocks say of each linear: (block, its fields)."""
    for path in sorted(directory.blocks.glob("block-*.json")):
        content = read_json(path)
        with own_content(path):
            yield from ((int(content["block"]), linear) for linear in content["linears"])
