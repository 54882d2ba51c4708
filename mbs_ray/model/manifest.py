"""What a checkpoint consists of: sha256 and size of every file, so that a copy can be told from a damaged one."""

import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from mbs_ray.errors import InputError
from mbs_ray.files import digest, file_digest, own_content, read_json_if_there
from mbs_ray.model.checkpoint_files import CONFIG, SINGLE

MANIFEST = "manifest.json"
_MOST_THREADS = 8
_WEIGHTS = ".safetensors"
#: The one folder of a checkpoint: templates besides that of ``chat_template.jinja``, one file each.
TEMPLATES = "additional_chat_templates"


def write_manifest(folder: Path, known: Mapping[str, str] = MappingProxyType({})) -> Path:
    """Write ``manifest.json`` of all other files of a folder; those whose sha256 is ``known`` are not read."""
    paths = {name: path for name, path in sorted(_files(folder).items()) if name != MANIFEST}
    digests = {**_sha256({name: path for name, path in paths.items() if name not in known}), **known}
    files = {name: {"bytes": path.stat().st_size, "sha256": digests[name]} for name, path in paths.items()}
    target = folder / MANIFEST
    target.write_text(json.dumps({"files": files}, indent=1) + "\n", encoding="utf-8")
    return target


def checkpoint_digest(folder: Path) -> str | None:
    """Hash what ``manifest.json`` says of config and weights; None where there is no manifest.

    The model card, which a later command may write anew, changes nothing. Raises :class:`InputError` where the manifest
    is damaged.
    """
    manifest = read_json_if_there(folder / MANIFEST)
    if manifest is None:
        return None
    with own_content(folder / MANIFEST):
        files = {name: one["sha256"] for name, one in manifest["files"].items()}
    weighed = [name for name in sorted(files) if name == CONFIG or name.endswith(_WEIGHTS)]
    return digest(*(f"{name} {files[name]}" for name in weighed))


@dataclass(frozen=True)
class Verdict:
    """How a folder's files compare with its manifest, which lists ``files`` of them.

    ``wrong`` has a line for each that is not as it was written. ``beside`` are names of files that the manifest does
    not list: hubs and desktops leave some (``.gitattributes``), and they do no harm.
    """

    files: int
    wrong: list[str]
    beside: list[str]


def verify(folder: Path) -> Verdict:
    """Compare a folder's files with its manifest.

    A whole ``model.safetensors`` that the manifest does not list is wrong: whoever loads the folder gets it in the
    place of the shards. Raises :class:`InputError` where the folder has no manifest.
    """
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        expected = {str(name): (int(one["bytes"]), str(one["sha256"])) for name, one in files.items()}
    except OSError as error:
        raise InputError(
            f"{folder / MANIFEST}: cannot be read ({error.strerror}); give a checkpoint or a run"
        ) from None
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        raise InputError(f"{folder / MANIFEST}: not a manifest, or a damaged one") from None
    wrong = []
    whole = {
        name: folder / name for name, (size, _) in expected.items() if _is_own(name) and _has_size(folder / name, size)
    }
    digests = _sha256(whole)
    for name, (size, sha256) in expected.items():
        path = folder / name
        if not _is_own(name):
            wrong.append(f"{name}: the manifest names a file of another folder")
        elif not path.is_file():
            wrong.append(f"{name}: missing")
        elif path.stat().st_size != size:
            wrong.append(f"{name}: {path.stat().st_size} bytes instead of {size}")
        elif digests.get(name) != sha256:
            wrong.append(f"{name}: other content")
    beside = sorted(_files(folder).keys() - {MANIFEST} - expected.keys())
    if SINGLE in beside:
        beside.remove(SINGLE)
        wrong.append(f"{SINGLE}: not in the manifest, but would be loaded in the place of the shards")
    return Verdict(len(expected), wrong, beside)


def _files(folder: Path) -> dict[str, Path]:
    """Find the files of a checkpoint, by the names that its manifest has for them."""
    here = [path for path in folder.iterdir() if path.is_file()]
    templates = [path for path in folder.glob(f"{TEMPLATES}/*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path for path in (*here, *templates)}


def _is_own(name: str) -> bool:
    """Check whether a name of a manifest leads to a file of its folder: no other is read."""
    return name in (Path(name).name, f"{TEMPLATES}/{Path(name).name}")


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _sha256(paths: Mapping[str, Path]) -> dict[str, str]:
    """Hash files in threads; by the names they have here."""
    with ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1)) as pool:
        return dict(zip(paths, pool.map(file_digest, paths.values()), strict=True))
