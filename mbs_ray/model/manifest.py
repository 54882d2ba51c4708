"""What a checkpoint consists of: sha256 and size of every file, so that a copy can be told from a damaged one."""

import hashlib
import json
from pathlib import Path

from mbs_ray.errors import InputError

MANIFEST = "manifest.json"


def write_manifest(folder: Path) -> Path:
    """Write ``manifest.json`` of all other files of a folder."""
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name != MANIFEST
    }
    target = folder / MANIFEST
    target.write_text(json.dumps({"files": files}, indent=1) + "\n", encoding="utf-8")
    return target


def verify(folder: Path) -> tuple[list[str], int]:
    """What is wrong with a folder's files, one line per file, and how many files its manifest lists.

    Raises :class:`InputError` where the folder has no manifest.
    """
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        expected = {str(name): (int(one["bytes"]), str(one["sha256"])) for name, one in files.items()}
    except OSError as error:
        raise InputError(
            f"{folder / MANIFEST}: cannot be read ({error.strerror}); give a checkpoint or a run"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{folder / MANIFEST}: not a manifest, or a damaged one") from None
    wrong = []
    for name, (size, digest) in expected.items():
        path = folder / name
        if Path(name).name != name:
            wrong.append(f"{name}: the manifest names a file of another folder")
        elif not path.is_file():
            wrong.append(f"{name}: missing")
        elif path.stat().st_size != size:
            wrong.append(f"{name}: {path.stat().st_size} bytes instead of {size}")
        elif _sha256(path) != digest:
            wrong.append(f"{name}: other content")
    here = {path.name for path in folder.iterdir() if path.is_file()} - {MANIFEST}
    wrong += [f"{name}: not in the manifest" for name in sorted(here - expected.keys())]
    return wrong, len(expected)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
