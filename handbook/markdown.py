"""Tables, types and defaults as the reference pages write them."""

import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

#: Bounds of a number as annotated-types names them, with the sign that readers know.
_BOUNDS = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
_NAMES: Mapping[object, str] = {
    str: "text",
    int: "whole number",
    float: "number",
    bool: "`true` or `false`",
    Path: "path",
    Any: "anything",
    type(None): "`null`",
}


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; what of a cell would be read as a column or as HTML is escaped."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(map(_escaped, row)) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|").replace("<", "&lt;")


def type_text(annotation: object, names: Mapping[object, str] | None = None) -> str:
    """Return a type in words, ``whole number > 0 or `auto```; ``names`` says how classes of the caller are called."""
    known = {**_NAMES, **(names or {})}
    if annotation in known:
        return known[annotation]
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return type_text(arguments[0], names) + bounds_text(arguments[1:])
    if origin is typing.Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(type_text(one, names) for one in arguments)
    if origin is list:
        return f"list ({type_text(arguments[0], names)})"
    if origin in (dict, Mapping):
        return f"mapping ({type_text(arguments[0], names)}: {type_text(arguments[1], names)})"
    raise TypeError(f"{annotation!r}: the reference has no words for this type")


def bounds_text(metadata: Sequence[object]) -> str:
    """Return `` ≥ 2`` for the bounds among what pydantic or annotated-types keep of a field."""
    found = [item for piece in metadata for item in getattr(piece, "metadata", [piece])]
    return "".join(
        f" {sign} {getattr(one, name):g}" for one in found for name, sign in _BOUNDS.items() if hasattr(one, name)
    )


def value_text(value: object) -> str:
    """Return a default as it would be written in YAML."""
    words = {None: "null", True: "true", False: "false"}
    return f"`{words[value]}`" if value is None or isinstance(value, bool) else f"`{value}`"
