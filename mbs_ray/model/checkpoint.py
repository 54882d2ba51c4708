"""A Hugging Face checkpoint in safetensors, read tensor by tensor and never whole."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

import torch
from safetensors import SafetensorError, safe_open
from transformers import PretrainedConfig

from mbs_ray.errors import InputError, one_line
from mbs_ray.model.checkpoint_files import CONFIG, INDEX, SINGLE
from mbs_ray.model.configuration import read_config

_HUB_PATTERNS = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies and what it is, without reading it."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]


class Checkpoint:
    """The tensors of a model folder by name: one ``model.safetensors`` or, without it, shards with an index.

    Every shard's header is read at construction, so that a missing, truncated or foreign file is
    found before any work starts. As in transformers the shards say which tensors there are, the index only which
    shards. Raises :class:`InputError` naming the file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not (folder / CONFIG).is_file():
            raise InputError(f"{folder}: no {CONFIG}; give the folder of a Hugging Face checkpoint")
        self.tensors: dict[str, TensorInfo] = {}
        for file in self.files:
            self.tensors.update(read_header(file))

    @cached_property
    def config(self) -> PretrainedConfig:
        return read_config(self.folder)

    @property
    def hidden_size(self) -> int:
        """Elements of a token's hidden state between blocks; of the text model where there are several."""
        return int(self.config.get_text_config().hidden_size)

    @cached_property
    def files(self) -> list[Path]:
        """All shards, in the order of their names."""
        if (self.folder / SINGLE).is_file():
            return [self.folder / SINGLE]
        names = sorted(set(self._weight_map.values()))
        for name in names:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or path.suffix != ".safetensors":
                raise InputError(f"{self.folder / INDEX}: {name!r} is no safetensors file of this folder")
            if not (self.folder / name).is_file():
                raise InputError(f"{self.folder / name}: named in {INDEX}, but missing; fetch this shard again")
        return [self.folder / name for name in names]

    @cached_property
    def _weight_map(self) -> dict[str, str]:
        """The index's answer to where a tensor lies; empty for a single file, beside which an index counts nothing."""
        index = self.folder / INDEX
        if (self.folder / SINGLE).is_file():
            return {}
        if not index.is_file():
            raise InputError(
                f"{self.folder}: neither {SINGLE} nor {INDEX}; only safetensors are read, "
                "so convert other weights (model.save_pretrained) first"
            )
        try:
            weight_map = json.loads(index.read_bytes())["weight_map"]
        except OSError as error:
            raise InputError(f"{index}: cannot be read ({error.strerror})") from error
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise InputError(f"{index}: no readable weight_map; fetch the file again") from error
        if not isinstance(weight_map, dict) or not weight_map:
            raise InputError(f"{index}: weight_map: expected names of tensors with their files; fetch the file again")
        for name, file in weight_map.items():
            if not isinstance(file, str) or "\0" in file:
                raise InputError(f"{index}: weight_map.{name}: {file!r} is no name of a file; fetch the file again")
        return weight_map

    @property
    def promised(self) -> dict[str, str]:
        """Names of tensors that the index says the shards hold, by tensor the file; empty without an index."""
        return self._weight_map

    def read(self, name: str) -> torch.Tensor:
        """Read a copy of a stored tensor into fresh memory (mapped files are not aligned for exact maths)."""
        with safe_open(self.tensors[name].file, framework="pt") as file:
            return file.get_tensor(name).clone()

    def read_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Read rows ``start`` to ``stop`` of a stored tensor into fresh memory."""
        with safe_open(self.tensors[name].file, framework="pt") as file:
            return file.get_slice(name)[start:stop].clone()

    def gather_rows(self, name: str, rows: torch.Tensor) -> torch.Tensor:
        """Gather the given rows (int64, ascending, distinct) of a stored matrix; only they are read."""
        info = self.tensors[name]
        gathered = torch.empty((len(rows), *info.shape[1:]), dtype=info.dtype)
        with safe_open(info.file, framework="pt") as file:
            stored = file.get_slice(name)
            for at, first, last in _consecutive(rows.tolist()):
                gathered[at : at + last - first + 1] = stored[first : last + 1]
        return gathered


def open_checkpoint(model: str, revision: str | None = None) -> Checkpoint:
    """Open a local folder, or fetch a hub repository (safetensors and JSON only) and open that."""
    folder = Path(model).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise InputError(f"revision: {model} is a local folder, which has no revisions")
        return Checkpoint(folder.resolve())
    if model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise InputError(f"{model}: no such folder")
    return Checkpoint(fetch(model, revision, _HUB_PATTERNS))


def fetch(model: str, revision: str | None, patterns: list[str]) -> Path:
    """Fetch files of a hub repository that match the patterns; the folder they lie in."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise InputError(f"{model}: no such folder, and the hub gave none: {one_line(error)}") from error


def read_header(file: Path) -> dict[str, TensorInfo]:
    """Return the tensors of a safetensors file by name. Raises :class:`InputError` naming the file."""
    try:
        with safe_open(file, framework="pt") as stored:
            parts = {name: stored.get_slice(name) for name in stored.keys()}  # noqa: SIM118 - no mapping, only this
            return {
                name: TensorInfo(file, _DTYPES[part.get_dtype()], tuple(part.get_shape()))
                for name, part in parts.items()
            }
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file}: no whole safetensors file ({one_line(error)}); fetch it again") from error
    except KeyError as error:
        raise InputError(f"{file}: holds tensors of type {error}, which are not supported") from error


def _consecutive(rows: list[int]) -> Iterator[tuple[int, int, int]]:
    """Yield runs of consecutive numbers as (position of the first, first, last)."""
    begin = 0
    for at in range(1, len(rows) + 1):
        if at == len(rows) or rows[at] != rows[at - 1] + 1:
            yield begin, rows[begin], rows[at - 1]
            begin = at
