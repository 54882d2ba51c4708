"""Block files of a run become the shards of a Hugging Face checkpoint, by hard links."""

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from mbs_ray.errors import InputError
from mbs_ray.files import appearing_folder
from mbs_ray.model.block_files import block_file, recorded_digest
from mbs_ray.model.checkpoint import Checkpoint, TensorInfo, read_header
from mbs_ray.model.checkpoint_files import INDEX
from mbs_ray.model.decoder import Decoder
from mbs_ray.model.manifest import TEMPLATES, write_manifest
from mbs_ray.model.packed import IntegerScheme, Schemes, check_loadable, write_quantization
from mbs_ray.model.readers import TRANSFORMERS, left_out, refuse_unreadable

CARD = "README.md"
_TEMPLATE = ".jinja"
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".onnx", ".gguf", INDEX)

Headers = Mapping[Path, Mapping[str, TensorInfo]]
"""The tensors of every shard, in the order of the shards."""


def assemble(source: Checkpoint, shards: Sequence[Path], target: Path, card: str) -> Path:
    """Link shards that hold the tensors of ``source`` into a folder that ``from_pretrained`` loads.

    Tokenizer, configuration and other small files are copied from the source; ``card`` is the model card. The
    folder appears when it is complete, in the place of an earlier one. Raises :class:`InputError` if the shards
    hold not exactly the tensors of the source.
    """
    headers = {shard: read_header(shard) for shard in shards}
    _require(source.tensors.keys(), headers)
    with appearing_folder(target) as unfinished:
        known = _fill(unfinished, headers, source.folder, card)
        write_manifest(unfinished, known)
    return target


def assemble_packed(
    decoder: Decoder, packed: Path, schemes: Schemes, target: Path, card: str, reader: str = TRANSFORMERS
) -> Path:
    """Assemble a checkpoint of the blocks in ``packed`` and the other tensors of the decoder's, a finished run's.

    ``reader``: the program that is to load it, one of :data:`~mbs_ray.model.readers.READERS`. Raises
    :class:`InputError` naming the file if a block is missing or is not one of this model, naming the linear if it
    cannot be loaded packed, or the reader if it does not read the schemes.
    """
    source = decoder.checkpoint
    refuse_unreadable(reader, source.config, schemes)
    wanted = set(decoder.outside_tensors())
    shards = [file for file in source.files if read_header(file).keys() <= wanted]
    for index in range(decoder.blocks):
        if transposed := decoder.transposed(index):
            raise InputError(
                f"block {index} {transposed[0]}: a Conv1D, whose packed form nothing loads (compressed-tensors knows "
                "that of nn.Linear); export plain safetensors"
            )
        weights = {linear: decoder.stored_weight(index, linear) for linear in decoder.linears(index)}
        if fused := [linear for linear, stored in weights.items() if stored is None]:
            raise InputError(
                f"block {index} {fused[0]}: this checkpoint holds all experts in one tensor, whose packed form nothing "
                "loads; export plain safetensors"
            )
        shards.append(packed / block_file(index))
        if not shards[-1].is_file():
            raise InputError(f"{shards[-1]}: missing; give the sweep another name and compute the run again")
        wanted.update(decoder.block_tensors(index))
        for linear, (rows, columns) in decoder.linears(index).items():
            scheme, weight = schemes.of(index, linear), str(weights[linear])
            check_loadable(rows, columns, scheme, f"block {index} {linear}")
            wanted.remove(weight)
            wanted |= scheme.stored_names(weight)
    headers = {shard: read_header(shard) for shard in shards}
    _require(wanted, headers)
    without = left_out(reader, source.config, wanted)
    with appearing_folder(target) as unfinished:
        known = _fill(unfinished, headers, source.folder, card, without)
        write_quantization(unfinished, _targets(decoder, schemes), decoder.linears_outside())
        write_manifest(unfinished, known)
    return target


def _targets(decoder: Decoder, schemes: Schemes) -> list[tuple[IntegerScheme, list[str]]]:
    """List the linears of each scheme: all, or where there are several schemes their names in the model."""
    if len(schemes.all) == 1:
        return [(schemes.all[0], ["Linear"])]
    names = [
        (schemes.of(index, linear), name)
        for index in range(decoder.blocks)
        for linear, name in decoder.linear_names(index).items()
    ]
    return [(scheme, [name for own, name in names if own == scheme]) for scheme in schemes.all]


def _require(wanted: AbstractSet[str], headers: Headers) -> None:
    """Raise :class:`InputError` unless the shards hold exactly these tensors."""
    held = {name: shard for shard, header in headers.items() for name in header}
    missing, foreign = sorted(wanted - held.keys()), sorted(held.keys() - wanted)
    if missing:
        folder = list(headers)[-1].parent
        raise InputError(f"{folder}: lacks {missing[0]} and {len(missing) - 1} more; finish the run first")
    if foreign:
        raise InputError(f"{held[foreign[0]]}: holds {foreign[0]}, which this model does not have; remove the file")


def _fill(
    folder: Path, headers: Headers, source: Path, card: str, without: AbstractSet[str] = frozenset()
) -> dict[str, str]:
    """Link the shards, write their index and the card, and copy the small files of the folder ``source``.

    A shard that holds tensors ``without`` which the checkpoint is to be is copied, less those. Return the sha256 of the
    files whose writers have recorded it, by their names in the folder.
    """
    weight_map: dict[str, str] = {}
    known: dict[str, str] = {}
    size = 0
    for number, (shard, header) in enumerate(headers.items(), 1):
        name = f"model-{number:05d}-of-{len(headers):05d}.safetensors"
        header = {tensor: info for tensor, info in header.items() if tensor not in without}
        if len(header) < len(headers[shard]):
            _copy_part(shard, header, folder / name)
        else:
            _link(shard, folder / name)
            if recorded := recorded_digest(shard):
                known[name] = recorded
        for tensor, info in header.items():
            weight_map[tensor] = name
            size += torch.Size(info.shape).numel() * info.dtype.itemsize
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n")
    for file in source.iterdir():
        if file.is_file() and not file.name.endswith(_WEIGHTS) and not file.name.startswith("."):
            shutil.copyfile(file, folder / file.name)
    _copy_templates(source / TEMPLATES, folder / TEMPLATES)
    (folder / CARD).write_text(card, encoding="utf-8")
    return known


def _copy_templates(source: Path, target: Path) -> None:
    """Copy the further chat templates of a tokenizer: files of this one folder, and of none below it."""
    if not source.is_dir() or source.is_symlink():
        return
    files = [file for file in source.glob(f"*{_TEMPLATE}") if file.is_file() and not file.name.startswith(".")]
    for file in files:
        target.mkdir(exist_ok=True)
        shutil.copyfile(file, target / file.name)


def _copy_part(source: Path, names: Iterable[str], target: Path) -> None:
    """Copy some tensors of a shard: those of one block, at once in memory."""
    with safe_open(source, framework="pt") as file:
        save_file({name: file.get_tensor(name) for name in names}, target, metadata={"format": "pt"})


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        # Some file systems (object stores mounted as folders, for one) know no hard links.
        shutil.copyfile(source, target)
