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


def digest(*parts: str) -> str:
    """16 hex digits that stand for these texts."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
