"""The fields that configure a method: their validation, and what of them stands in its label."""

import dataclasses
from typing import Any

from mbs_ray.errors import InputError


def require_integer(method: str, field: str, value: object, low: int, high: int | None = None) -> None:
    valid = isinstance(value, int) and not isinstance(value, bool)
    if not valid or value < low or (high is not None and value > high):  # type: ignore[operator]
        rule = f"at least {low}" if high is None else f"from {low} to {high}"
        raise InputError(f"{method}: {field} must be a whole number {rule}, got {value!r}")


def require_fraction(method: str, field: str, value: object, *, one: bool) -> None:
    """Raise InputError unless the value is a number from 0 to 1; `one` says whether 1 itself is allowed."""
    valid = isinstance(value, int | float) and not isinstance(value, bool)
    if not valid or not (0 <= value <= 1 if one else 0 <= value < 1):  # type: ignore[operator]
        rule = "from 0 to 1" if one else "from 0 to below 1 (one half is 0.5, not 50)"
        raise InputError(f"{method}: {field} must be a number {rule}, got {value!r}")


def require_flag(method: str, field: str, value: object) -> None:
    if not isinstance(value, bool):
        raise InputError(f"{method}: {field} must be true or false, got {value!r}")


#: What labels say in words of their own: ``2:4``, ``4bit-g128-sym``.
_IN_WORDS = ("sparsity", "pattern", "scope", "bits", "group_size", "symmetric", "clip_search", "activation_order")


def whole_label(method: Any, words: str) -> str:
    """Return the words of a label, and every other field of the method that differs from its default.

    ``sparsegpt-50`` → ``sparsegpt-50-damping0.05-keep-zeros``: what is not the same method has not the same label.
    """
    others = [field for field in dataclasses.fields(method) if field.name not in _IN_WORDS]
    differing = [
        (field.name.replace("_", "-"), getattr(method, field.name))
        for field in others
        if getattr(method, field.name) != field.default
    ]
    return words + "".join(f"-{name}" if value is True else f"-{name}{value}" for name, value in differing)
