"""Tensors on disk: a file per block, and one for all that no method touches."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from mbs_ray.files import appearing
from mbs_ray.model.checkpoint import Checkpoint
from mbs_ray.model.decoder import Decoder

BLOCK_SUFFIX = ".safetensors"
_METADATA = {"format": "pt"}


def block_file(index: int) -> str:
    """Return the file name of a block."""
    return f"block-{index:05d}{BLOCK_SUFFIX}"


def write_block(folder: Path, index: int, tensors: Mapping[str, torch.Tensor]) -> Path:
    """Write a finished block under its stored names; the file appears whole or not at all."""
    return write_tensors(folder / block_file(index), tensors)


def read_block(folder: Path, index: int) -> dict[str, torch.Tensor] | None:
    """Read the tensors of a finished block by stored name, in fresh memory; None where there is none."""
    path = folder / block_file(index)
    if not path.is_file():
        return None
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118


def write_outside(checkpoint: Checkpoint, decoder: Decoder, path: Path) -> Path:
    """Write the tensors that no method touches (embeddings, norms, head), once for all runs of a model."""
    if not path.is_file():
        write_tensors(path, {name: checkpoint.read(name) for name in decoder.outside_tensors()})
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
