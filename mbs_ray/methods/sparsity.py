"""The number of weights to set to zero, and masks that choose exactly this many."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mbs_ray.errors import InputError
from mbs_ray.methods.field_checks import require_fraction, whole_label
from mbs_ray.methods.method_part import MethodPart

UNSTRUCTURED = "unstructured"
COMPARED_GROUP = 16


def parse_pattern(method: str, pattern: object) -> tuple[int, int] | None:
    """Parse "n:m" to (n, m), where n of every m consecutive weights of a row are kept; None if unstructured."""
    if pattern == UNSTRUCTURED:
        return None
    match = re.fullmatch(r"([1-9]\d*):([1-9]\d*)", pattern) if isinstance(pattern, str) else None
    if match and int(match[1]) < int(match[2]):
        return int(match[1]), int(match[2])
    raise InputError(
        f'{method}: pattern must be "{UNSTRUCTURED}" or "n:m" with n below m (n of every m weights are kept; '
        f"in YAML, write it in quotes), got {pattern!r}"
    )


@dataclass(frozen=True, kw_only=True)
class Pruning(MethodPart):
    """Base of the methods that prune: their fields.

    sparsity: share of the weights set to zero, in [0, 1); left out: 0.5, or what the pattern gives.
    pattern: "unstructured", or "n:m" to keep n of every m consecutive weights of a row ("2:4" halves them).
    scope: the weights whose scores are compared when unstructured; left out: the method's own.
    """

    scopes: ClassVar[tuple[str, ...]]
    """What `scope` may be, the method's own first."""

    sparsity: float = None  # type: ignore[assignment]  # a float once __post_init__ is done
    pattern: str = UNSTRUCTURED
    scope: str = None  # type: ignore[assignment]  # a string once __post_init__ is done

    def __post_init__(self) -> None:
        if self.sparsity is not None:
            require_fraction(self.name, "sparsity", self.sparsity, one=False)
        kept = self.kept_of_group
        if kept is None:
            share = 0.5 if self.sparsity is None else float(self.sparsity)
        else:
            share = 1 - kept[0] / kept[1]
            if self.sparsity is not None and not math.isclose(self.sparsity, share, abs_tol=1e-6):
                raise InputError(
                    f"{self.name}: sparsity {self.sparsity} contradicts pattern {self.pattern!r}, "
                    f"which gives {share:g}; leave sparsity out"
                )
        object.__setattr__(self, "sparsity", share)
        if self.scope is None:
            object.__setattr__(self, "scope", self.scopes[0])
        elif self.scope not in self.scopes:
            raise InputError(f"{self.name}: scope must be one of {', '.join(self.scopes)}, got {self.scope!r}")
        elif kept is not None and self.scope != self.scopes[0]:
            raise InputError(
                f"{self.name}: scope {self.scope!r} has no meaning for pattern {self.pattern!r}; leave it out"
            )

    @property
    def kept_of_group(self) -> tuple[int, int] | None:
        """(n, m) of the pattern; None if unstructured."""
        return parse_pattern(self.name, self.pattern)

    @property
    def pruning_label(self) -> str:
        amount = f"{100 * self.sparsity:g}" if self.kept_of_group is None else self.pattern
        return amount if self.scope == self.scopes[0] else f"{amount}-{self.scope}"

    @property
    def label(self) -> str:
        return whole_label(self, f"{self.name}-{self.pruning_label}")

    def check(self, rows: int, columns: int, name: str) -> None:
        """Raise InputError if a linear of this shape, called `name`, cannot take the pattern."""
        kept = self.kept_of_group
        if kept is not None and columns % kept[1]:
            raise InputError(
                f"{name}: pattern {self.pattern} needs columns in multiples of {kept[1]}, this linear has {columns}"
            )


def count_zeros(sparsity: float, weights: int) -> int:
    """Compute how many weights to prune: the integer nearest to their share (a half goes to the even one)."""
    return round(sparsity * weights)


def lowest(scores: Tensor, count: int) -> Tensor:
    """Return a mask of exactly `count` lowest scores along the last dimension; of equal scores the first are taken.

    scores: [..., n] without NaN, 0 <= count <= n. The result is the same on every device.
    """
    if count == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    threshold = _threshold(scores, count)
    if scores.device.type != "cpu":
        return _first_of_equals(scores, threshold, count)
    chosen = scores <= threshold
    # Counting equals in order takes longer than all the rest, and few lines have more of them than they need.
    many = torch.count_nonzero(chosen, dim=-1) > count
    if many.any():
        chosen[many] = _first_of_equals(scores[many], threshold[many], count)
    return chosen


def _first_of_equals(scores: Tensor, threshold: Tensor, count: int) -> Tensor:
    below, equal = scores < threshold, scores == threshold
    missing = count - below.sum(-1, keepdim=True, dtype=torch.int32)
    return below | (equal & (equal.cumsum(-1, dtype=torch.int32) <= missing))


def _threshold(scores: Tensor, count: int) -> Tensor:
    """Return the count-th lowest score along the last dimension, which keeps size 1."""
    if scores.device.type != "cpu":
        return scores.kthvalue(count, dim=-1, keepdim=True).values
    # NumPy selects with vector instructions, many times faster; but not in 16 bits.
    copy = scores.float() if scores.itemsize == 2 else scores.clone(memory_format=torch.contiguous_format)
    copy.numpy().partition(count - 1, axis=-1)
    return copy[..., count - 1 : count].clone()


def lowest_of_all(scores: Tensor, count: int) -> Tensor:
    """Return a mask of exactly `count` lowest scores of a whole [rows, columns] matrix, ties row by row."""
    if count == 0 or scores.device.type != "cpu":
        return lowest(scores.reshape(-1), count).view(scores.shape)
    # The threshold is sought in the order of memory: transposing takes longer than selecting.
    threshold = _threshold((scores if scores.is_contiguous() else scores.t()).reshape(-1), count)
    chosen = scores <= threshold
    surplus = int(torch.count_nonzero(chosen)) - count
    if surplus:
        chosen[(scores == threshold).nonzero()[-surplus:].unbind(1)] = False
    return chosen


def lowest_of_groups(scores: Tensor, keep: int, group: int) -> Tensor:
    """Return a mask of the group - keep lowest scores in every `group` consecutive columns of [rows, columns]."""
    grouped = scores.reshape(scores.shape[0], -1, group)
    return lowest_of_few(grouped, group - keep, dim=2).view(scores.shape)


def lowest_of_few(scores: Tensor, count: int, dim: int) -> Tensor:
    """Do as `lowest` along a short dimension, where comparing every pair is many times faster than selecting."""
    if scores.shape[dim] > COMPARED_GROUP:
        return lowest(scores.movedim(dim, -1), count).movedim(-1, dim)
    return torch.stack(lowest_of_places(scores.unbind(dim), count), dim)


def lowest_of_places(places: Sequence[Tensor], count: int) -> list[Tensor]:
    """Return masks of the `count` lowest of a few scores, each a tensor, elementwise; of equal ones the first."""
    # The rank of a score is the number of scores before it: those that are lower, or equal and at an earlier place.
    # Bytes, but in a kernel, whose vectors are of floats: there they take a third of the time.
    counts = torch.float32 if torch.compiler.is_compiling() else torch.int8
    ranks = [torch.zeros_like(place, dtype=counts) for place in places]
    for later in range(len(places)):
        for earlier in range(later):
            first = places[earlier] <= places[later]
            ranks[later] += first
            ranks[earlier] += ~first
    return [rank < count for rank in ranks]
