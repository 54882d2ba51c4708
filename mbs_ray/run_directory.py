"""The run directory: the truth about a run, and the signature that guards it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mbs_ray.errors import InputError

SIGNATURE = "signature.json"
RESULT = "result.json"


class RunDirectory:
    """Files of one run: signature, blocks, evaluation, checkpoint, journal, result."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.blocks = path / "blocks"
        self.checkpoint = path / "checkpoint"
        self.journal = path / "journal.jsonl"

    def stored_signature(self) -> dict[str, Any] | None:
        path = self.path / SIGNATURE
        return json.loads(path.read_text()) if path.is_file() else None

    def claim(self, signature: Mapping[str, Any]) -> None:
        """Make the directory that of a run with this signature, or go on with it.

        The signature covers all that can change bits. Raises :class:`InputError` naming the field
        by which an existing one differs.
        """
        stored = self.stored_signature()
        if stored is not None:
            _refuse_changed(self.path, stored, json.loads(json.dumps(signature)))
            return
        self.blocks.mkdir(parents=True, exist_ok=True)
        write_json(self.path / SIGNATURE, signature)

    def result(self) -> dict[str, Any] | None:
        """What a finished run left; None while it is not finished."""
        path = self.path / RESULT
        if not path.is_file() or not self.checkpoint.is_dir():
            return None
        return json.loads(path.read_text())

    def finish(self, result: Mapping[str, Any]) -> None:
        write_json(self.path / RESULT, result)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON so that the file is there whole or not at all."""
    partial = path.with_suffix(path.suffix + ".tmp")
    partial.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
    partial.replace(path)


def flatten(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _refuse_changed(path: Path, stored: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    before, now = flatten(stored), flatten(asked)
    for field in sorted(before.keys() | now.keys()):
        if before.get(field) != now.get(field):
            raise InputError(
                f"{path}: was begun with {field} {before.get(field)!r}, now it is {now.get(field)!r}; "
                "give the sweep another name, or remove this folder"
            )
