"""Tensors on disk: a file per block, and one for all that no method touches."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from mbs_ray.files import appearing, file_digest

if TYPE_CHECKING:
    # They load transformers, for which whoever only names files does not wait.
    from mbs_ray.model.checkpoint import Checkpoint
    from mbs_ray.model.decoder import Decoder

BLOCK_SUFFIX, DIGEST_SUFFIX = ".safetensors", ".sha256"
_METADATA = {"format": "pt"}


def block_file(index: int) -> str:
    """Return the file name of a block."""
    return f"block-{index:05d}{BLOCK_SUFFIX}"


def write_block(folder: Path, index: int, tensors: Mapping[str, torch.Tensor]) -> Path:
    """Write a finished block under its stored names; the file appears whole or not at all."""
    return write_tensors(folder / block_file(index), tensors)


def record_digest(path: Path) -> None:
    """Hash a file that was just written, while it is in memory, for the manifests of checkpoints that hold it.

    The digest is written beside it, as ``sha256sum --check`` reads it.
    """
    with appearing(path.with_suffix(DIGEST_SUFFIX)) as unfinished:
        unfinished.write_text(f"{file_digest(path)}  {path.name}\n", encoding="utf-8")


def recorded_digest(path: Path) -> str | None:
    """Return the 64 hex digits that :func:`record_digest` wrote; None where it did not, or for an older file."""
    recorded = path.with_suffix(DIGEST_SUFFIX)
    try:
        if recorded.stat().st_mtime_ns < path.stat().st_mtime_ns:
            return None
        found = recorded.read_text(encoding="utf-8").split(" ")[0]
    except (OSError, UnicodeDecodeError):
        return None
    return found if len(found) == 64 else None


def read_block(folder: Path, index: int) -> dict[str, torch.Tensor] | None:
    """Read the tensors of a finished block by stored name, in fresh memory; None where there is none."""
    path = folder / block_file(index)
    if not path.is_file():
        return None
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118


def write_outside(checkpoint: "Checkpoint", decoder: "Decoder", path: Path) -> Path:
    """Write the tensors that no method touches (embeddings, norms, head), once for all runs of a model."""
    if not path.is_file():
        write_tensors(path, {name: checkpoint.read(name) for name in decoder.outside_tensors()})
        record_digest(path)
    return path


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], facts: tuple[str, str] | None = None) -> Path:
    """Write a safetensors file that appears whole or not at all.

    ``facts``: name and text of metadata; one pair, because several come in any order, and bytes are to be the same.
    """
    with appearing(path) as unfinished:
        save_file(
            {name: tensor.contiguous() for name, tensor in tensors.items()},
            unfinished,
            metadata=dict([facts]) if facts else _METADATA,
        )
        # safetensors writes for the owner alone; whoever may read the folder may read the block.
        unfinished.chmod(path.parent.stat().st_mode & 0o666)
    return path
