"""Files that appear whole or not at all, and digests."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON so that the file is there whole or not at all."""
    partial = path.with_suffix(path.suffix + ".tmp")
    partial.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
    partial.replace(path)


#: Bytes of a name that every file system takes.
LONGEST_NAME = 255


def short_name(name: str, ending: str = "", longest: int = LONGEST_NAME) -> str:
    """``name + ending`` as the name of a file of at most so many bytes: a longer one's beginning, and a digest."""
    whole = (name + ending).encode()
    if len(whole) <= longest:
        return name + ending
    tail = f"-{digest(name)}{ending}"
    return name.encode()[: longest - len(tail.encode())].decode(errors="ignore") + tail


def digest(*parts: str) -> str:
    """16 hex digits that stand for these texts."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
