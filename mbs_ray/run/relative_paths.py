"""Folders in a sweep file, which are relative to the file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mbs_ray.errors import InputError


def relative_to(folder: Path, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a run with relative paths resolved and ``~`` expanded.

    A model, or a data set, that is no folder there stays the name of one on the hub.
    """
    resolved = dict(fields)
    if isinstance(resolved.get("model"), str):
        resolved["model"] = _folder_or_name(folder, resolved["model"])
    if "corpus" in resolved:
        resolved["corpus"] = _corpus(folder, resolved["corpus"])
    for field in ("distribution", "nvme_path"):
        if isinstance(resolved.get(field), str):
            resolved[field] = _path(folder, resolved[field])
    if isinstance(resolved.get("evaluation"), dict):
        resolved["evaluation"] = {
            name: relative_to(folder, one) if isinstance(one, dict) else one
            for name, one in resolved["evaluation"].items()
        }
    return resolved


def _corpus(folder: Path, corpus: Any) -> Any:
    if isinstance(corpus, str):
        return _path(folder, corpus)
    if not isinstance(corpus, Mapping):
        return corpus
    resolved = dict(corpus)
    if isinstance(resolved.get("folder"), str):
        resolved["folder"] = _path(folder, resolved["folder"])
    dataset, files = resolved.get("dataset"), resolved.get("data_files")
    if isinstance(dataset, str):
        # One of the builders of `datasets` (json, parquet) has no slash; the files of others lie in the data set.
        if isinstance(files, str) and "/" not in dataset and "://" not in files:
            resolved["data_files"] = _path(folder, files)
        resolved["dataset"] = _folder_or_name(folder, dataset) if "/" in dataset else dataset
    return resolved


def _folder_or_name(folder: Path, name: str) -> str:
    path = folder / _expanded(name)
    return str(path.resolve()) if path.is_dir() else name


def _path(folder: Path, path: str) -> str:
    return str((folder / _expanded(path)).resolve())


def _expanded(path: str) -> Path:
    if "\0" in path:
        raise InputError(f"{path!r}: no path can hold a null character")
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise InputError(f"{path}: {error}") from error
