"""A checkpoint known by its configuration alone: names and shapes of all tensors, and no weights."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import BloomConfig, PretrainedConfig

from mbs_ray.errors import InputError
from mbs_ray.model.checkpoint import Checkpoint, TensorInfo, fetch
from mbs_ray.model.checkpoint_files import CONFIG
from mbs_ray.model.configuration import empty_model, read_config
from mbs_ray.model.decoder import Decoder
from mbs_ray.model.support import failed_forward, refuse_config
from mbs_ray.model.wrapper import find_wrapper

#: Hidden size, blocks and heads by hub id; all have 250,880 rows of vocabulary. Sizes of the BLOOM repositories.
_BLOOM = {
    "bigscience/bloom-560m": (1024, 24, 16),
    "bigscience/bloom-1b1": (1536, 24, 16),
    "bigscience/bloom-1b7": (2048, 24, 16),
    "bigscience/bloom-3b": (2560, 30, 32),
    "bigscience/bloom-7b1": (4096, 30, 32),
    "bigscience/bloom": (14336, 70, 112),
}
_BLOOM_VOCABULARY = 250_880
#: Drawing more random numbers takes longer than what is measured with them.
_DISTINCT = 2**20
_META = torch.device("meta")


class MetaCheckpoint(Checkpoint):
    """Checkpoint whose tensors are all on the meta device.

    ``config`` is the model's configuration, ``dtype`` the one that its weights are stored in.
    """

    def __init__(self, name: str, config: PretrainedConfig, dtype: torch.dtype) -> None:
        self.folder = Path(name)
        self.dtype = dtype
        self._config = config
        text = empty_model(self.folder, config.get_text_config(), dtype)
        wrapper = find_wrapper(self.folder, config, text, dtype)
        model = text if wrapper is None else wrapper.model
        ties = getattr(config, "tie_word_embeddings", config.get_text_config().tie_word_embeddings)
        tied = {head for head in (model._tied_weights_keys or []) if ties}
        self.tensors = {
            key: TensorInfo(self.folder, tensor.dtype, tuple(tensor.shape))
            for key, tensor in model.state_dict().items()
            if key not in tied
        }

    @cached_property
    def config(self) -> PretrainedConfig:
        return self._config

    def read(self, name: str) -> torch.Tensor:
        info = self.tensors[name]
        return torch.empty(info.shape, dtype=info.dtype, device=_META)

    def read_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        info = self.tensors[name]
        return torch.empty((stop - start, *info.shape[1:]), dtype=info.dtype, device=_META)

    def gather_rows(self, name: str, rows: torch.Tensor) -> torch.Tensor:
        return self.read_rows(name, 0, len(rows))


class RandomOutline(MetaCheckpoint):
    """Meta checkpoint that reads small random numbers in host memory: for measuring, not for results."""

    def read(self, name: str) -> torch.Tensor:
        return self._random(self.tensors[name].shape, name)

    def read_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        return self._random((stop - start, *self.tensors[name].shape[1:]), name)

    def _random(self, shape: Sequence[int], name: str) -> torch.Tensor:
        size = torch.Size(shape)
        numbers = torch.randn(min(size.numel(), _DISTINCT)).mul_(0.02).to(self.tensors[name].dtype)
        return numbers.repeat(-(-size.numel() // len(numbers)))[: size.numel()].view(size)


class MetaDecoder(Decoder):
    """Decoder of a :class:`MetaCheckpoint`, on the meta device: it runs, and its outputs have shapes and no numbers."""

    def __init__(self, meta_checkpoint: MetaCheckpoint, compute_dtype: torch.dtype) -> None:
        super().__init__(meta_checkpoint, compute_dtype, _META.type)

    def _forward_outside(self, rows: torch.Tensor, position: torch.Tensor) -> Any:
        with _NoDataDependence():
            return super()._forward_outside(rows, position)

    def _check_forward(self) -> None:
        """Check that the forward runs: without numbers, comparisons tell nothing."""
        try:
            self._recorded(1, 2)
        except Exception as error:
            raise failed_forward(self.checkpoint.folder, self._model, error) from error


class _NoDataDependence(TorchDispatchMode):
    """Mode that answers a model's questions about its data with False: without numbers, nothing is packed or padded."""

    def __torch_dispatch__(
        self, function: Any, types: Sequence[type], args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function in _QUESTIONS:
            return False
        return function(*args, **(kwargs or {}))


_QUESTIONS = (
    torch.ops.aten.is_nonzero.default,
    torch.ops.aten.item.default,
    torch.ops.aten._local_scalar_dense.default,
)


def meta_checkpoint(model: str, revision: str | None = None) -> MetaCheckpoint:
    """Build the checkpoint from the config.json of a folder or repository; hub BLOOMs are known without network.

    Raises :class:`InputError` if there is no configuration, or none of a model that can be compressed.
    """
    folder = Path(model).expanduser()
    if not folder.is_dir() and model in _BLOOM:
        hidden, blocks, heads = _BLOOM[model]
        config = BloomConfig(vocab_size=_BLOOM_VOCABULARY, hidden_size=hidden, n_layer=blocks, n_head=heads)
        # The 176B is stored in bfloat16, the others in float16: as wide.
        return MetaCheckpoint(model, config, torch.bfloat16 if model == "bigscience/bloom" else torch.float16)
    if not folder.is_dir():
        if model.startswith((".", "/", "~")) or model.count("/") > 1:
            raise InputError(f"{model}: no such folder")
        folder = fetch(model, revision, [CONFIG])
    if not (folder / CONFIG).is_file():
        raise InputError(f"{folder}: no {CONFIG}; give the folder of a Hugging Face checkpoint")
    config = read_config(folder)
    refuse_config(folder, config)
    return MetaCheckpoint(str(folder), config, _stored_dtype(folder, config))


def _stored_dtype(folder: Path, config: PretrainedConfig) -> torch.dtype:
    """Return the dtype of the checkpoint's largest tensor; without weights next to it, what the configuration says."""
    try:
        infos = Checkpoint(folder).tensors.values()
    except InputError:
        return getattr(config, "dtype", None) or torch.float32
    return max(infos, key=lambda info: torch.Size(info.shape).numel()).dtype
