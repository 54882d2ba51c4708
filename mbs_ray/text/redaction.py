"""Addresses without their secrets: passwords and signatures in them open what they lead to."""

import re
from collections.abc import Mapping
from typing import Any

_USERINFO = re.compile(r"(?<=://)[^/?#@\s\"'<>]+@")
#: Presigned addresses carry their signature behind the question mark, some servers a token behind the hash.
_QUERY = re.compile(r"(?<=://)([^?#\s\"'<>]*)[?#][^\s\"'<>]*")


def without_secrets(text: str) -> str:
    """Remove `user:password@`, and what follows ? or #, from every address in the text."""
    return _QUERY.sub(r"\1", _USERINFO.sub("", text))


def all_without_secrets(content: Any) -> Any:
    """Return JSON's types with :func:`without_secrets` applied to every text in them, names included."""
    if isinstance(content, str):
        return without_secrets(content)
    if isinstance(content, Mapping):
        return {all_without_secrets(key): all_without_secrets(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [all_without_secrets(one) for one in content]
    return content
