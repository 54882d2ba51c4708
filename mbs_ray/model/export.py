"""Block files of a run become the shards of a Hugging Face checkpoint, by hard links."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from mbs_ray.errors import InputError
from mbs_ray.model.checkpoint import INDEX, Checkpoint
from mbs_ray.model.decoder import Decoder

_METADATA = {"format": "pt"}
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".onnx", ".gguf", INDEX)


def block_file(index: int) -> str:
    return f"block-{index:05d}.safetensors"


def write_block(folder: Path, index: int, tensors: Mapping[str, torch.Tensor]) -> Path:
    """Write a finished block under its stored names; the file appears whole or not at all."""
    return _write(folder / block_file(index), tensors)


def read_block(folder: Path, index: int) -> dict[str, torch.Tensor] | None:
    """The tensors of a finished block by stored name, in fresh memory; None where there is none."""
    path = folder / block_file(index)
    if not path.is_file():
        return None
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118


def write_outside(checkpoint: Checkpoint, decoder: Decoder, path: Path) -> Path:
    """Write the tensors that no method touches (embeddings, norms, head), once for all runs of a model."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, {name: checkpoint.read(name) for name in decoder.outside_tensors()})
    return path


def assemble(source: Checkpoint, blocks: Path, outside: Path, target: Path) -> Path:
    """Link block files and the untouched tensors into a folder that ``from_pretrained`` loads.

    Tokenizer, configuration and other small files are copied from the source. The folder appears
    when it is complete. Raises :class:`InputError` if the shards hold not exactly the tensors of
    the source.
    """
    partial = target.with_name(target.name + ".tmp")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    shards = [outside, *sorted(blocks.glob("block-*.safetensors"))]
    weight_map: dict[str, str] = {}
    size = 0
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _link(shard, partial / name)
        with safe_open(shard, framework="pt") as file:
            for tensor in file.keys():  # noqa: SIM118
                weight_map[tensor] = name
                info = source.tensors[tensor]
                size += torch.Size(info.shape).numel() * info.dtype.itemsize
    if weight_map.keys() != source.tensors.keys():
        missing = sorted(source.tensors.keys() - weight_map.keys())
        raise InputError(f"{blocks}: lacks {missing[0]} and {len(missing) - 1} more; finish the run first")
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(weight_map.items()))}
    (partial / INDEX).write_text(json.dumps(index, indent=1) + "\n")
    for file in source.folder.iterdir():
        if file.is_file() and not file.name.endswith(_WEIGHTS) and not file.name.startswith("."):
            shutil.copyfile(file, partial / file.name)
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
    return target


def _write(path: Path, tensors: Mapping[str, torch.Tensor]) -> Path:
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial, metadata=_METADATA)
    # safetensors writes for the owner alone; whoever may read the folder may read the block.
    partial.chmod(path.parent.stat().st_mode & 0o666)
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(path)
    return path


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        # Some file systems (object stores mounted as folders, for one) know no hard links.
        shutil.copyfile(source, target)
