"""Methods and samplings as one word of a command line: ``sparsegpt:sparsity=0.5``."""

from collections.abc import Iterator
from typing import Any

import yaml

from mbs_ray.errors import InputError
from mbs_ray.run.plain_yaml import read_yaml


def named_spec(text: str, key: str = "name") -> str | dict[str, Any]:
    """``name`` or ``name:field=value,field=value`` as a name or a mapping, with it under ``key``; values are YAML."""
    name, _, fields = text.partition(":")
    if not fields:
        return name
    mapping: dict[str, Any] = {key: name}
    for part in _split_fields(fields):
        field, equals, value = part.partition("=")
        if not equals:
            raise InputError(f"{text}: {part!r} is no field=value")
        try:
            mapping[field.strip()] = read_yaml(value) if ":" not in value or "{" in value else value
        except yaml.YAMLError as error:
            raise InputError(f"{text}: {part!r} has no readable value") from error
    return mapping


def _split_fields(fields: str) -> Iterator[str]:
    """Split at commas that are not inside braces."""
    depth, begin = 0, 0
    for at, character in enumerate(fields):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if character == "," and depth == 0:
            yield fields[begin:at]
            begin = at + 1
    yield fields[begin:]
