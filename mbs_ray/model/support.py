"""Checks that a model can be taken apart into blocks; any other is refused by name before its weights are read."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.utils import _pytree as pytree
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PretrainedConfig, PreTrainedModel

from mbs_ray.errors import InputError, one_line
from mbs_ray.model.checkpoint_files import CONFIG
from mbs_ray.model.recorder import Recorder

Arguments = Sequence[tuple[tuple, Mapping[str, Any]]]
"""What each block was called with, beside hidden states: (by position, by name)."""

_SEE = "docs/architectures.md says which models can be compressed"


def refuse_config(folder: Path, config: PretrainedConfig) -> None:
    """Raise :class:`InputError` for a model whose configuration alone says that it cannot work."""
    file = folder / CONFIG
    if getattr(config, "quantization_config", None):
        raise InputError(
            f"{file}: quantization_config says that the linears are packed; "
            "give the dense checkpoint (that of a run, or mbs export --format safetensors)"
        )
    if getattr(config, "slow_but_exact", False):
        raise InputError(
            f"{file}: slow_but_exact must be false; its forward goes round the linears, so that their inputs "
            "cannot be seen"
        )
    if config.is_encoder_decoder:
        raise InputError(
            f"{file}: {config.model_type} is an encoder-decoder, which is not supported: two stacks of blocks, and "
            f"cross-attention that needs what the encoder gives; {_SEE}"
        )
    text = config.get_text_config()
    if type(text) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        wrapped = "" if text is config else f" inside {config.model_type!r}"
        raise InputError(f"{file}: model_type {text.model_type!r}{wrapped} has no causal language model; {_SEE}")


def refuse_block_count(folder: Path, config: PretrainedConfig, tensors: int) -> None:
    """Raise :class:`InputError` for a configuration of no block, or of more than the checkpoint has tensors."""
    blocks = getattr(config, "num_hidden_layers", None)
    if isinstance(blocks, int) and not 0 < blocks <= tensors:
        raise InputError(
            f"{folder / CONFIG}: num_hidden_layers: {blocks} blocks, where the files hold {tensors} tensors"
        )


def find_blocks(folder: Path, model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """Find the list of the model's blocks and its path: the longest that lies in no other list.

    Raises :class:`InputError` where there is none, and for blocks that have weights in common.
    """
    lists = {name: one for name, one in model.named_modules() if isinstance(one, nn.ModuleList) and len(one)}
    outermost = {name: one for name, one in lists.items() if not any(name.startswith(f"{outer}.") for outer in lists)}
    if not outermost:
        raise InputError(f"{folder}: no list of blocks in {type(model).__name__}; {_SEE}")
    path, blocks = max(outermost.items(), key=lambda item: len(item[1]))
    _refuse_shared(folder, path, blocks, model.all_tied_weights_keys)
    return path, blocks


def refuse_stacked(folder: Path, path: str, block: nn.Module) -> None:
    """Raise :class:`InputError` for experts that could not be listed, and other weights that are no matrices."""
    for name, module in block.named_modules():
        if not isinstance(module, _ConvNd) and any(one.dim() > 2 for one in module.parameters(recurse=False)):
            raise InputError(
                f"{folder}: {path}.{name} ({type(module).__name__}) holds several experts, or other weights that are "
                f"not one matrix each, in a form of its own, which is not supported; {_SEE}"
            )


def _refuse_shared(folder: Path, path: str, blocks: nn.ModuleList, tied: Mapping[str, str]) -> None:
    owners: dict[int, str] = {}
    for index, block in enumerate(blocks):
        for name, parameter in block.named_parameters():
            full = f"{path}.{index}.{name}"
            other = tied.get(full) or owners.setdefault(id(parameter), full)
            if other != full:
                raise InputError(
                    f"{folder}: {full} is {other}; blocks that have weights in common are not supported: the second "
                    f"to be compressed would undo the first; {_SEE}"
                )


def check_chain(folder: Path, recorders: Sequence[Recorder]) -> None:
    """Check, after a forward with recorders, that each was called once with exactly what the one before gave.

    Raises :class:`InputError` where a model does more between its blocks than pass hidden states on, and for a linear
    that a block never calls.
    """
    previous: torch.Tensor | None = None
    for index, recorder in enumerate(recorders):
        if recorder.calls != 1 or recorder.hidden is None:
            raise InputError(f"{folder}: its forward calls block {index} {recorder.calls} times, not once; {_SEE}")
        if previous is not None and not torch.equal(recorder.hidden, previous):
            raise InputError(f"{folder}: its forward changes the hidden states between blocks before {index}; {_SEE}")
        if recorder.uncalled:
            raise InputError(
                f"{folder}: block {index} never calls {recorder.uncalled[0]}, so that its inputs cannot be seen; {_SEE}"
            )
        previous = recorder.hidden


def failed_forward(folder: Path, model: PreTrainedModel, error: Exception) -> InputError:
    """Put what a model's own code raised, which a configuration may bring to anything, into one line."""
    return InputError(
        f"{folder / CONFIG}: as configured there, {type(model).__name__} cannot be taken apart into blocks "
        f"({one_line(error)})"
    )


def scaled_head(folder: Path, model: PreTrainedModel) -> InputError:
    """Refuse a wrapped text model that scales or caps its logits, which the wrapper around it may not do."""
    return InputError(
        f"{folder / CONFIG}: {type(model).__name__} scales or caps its logits, and what is around it may not; save the "
        f"text model as a checkpoint of its own; {_SEE}"
    )


def check_arguments(folder: Path, first: Arguments, second: Arguments) -> None:
    """Compare what the blocks were called with, besides hidden states, for two texts of equal length.

    Raises :class:`InputError` where it differs: a block is called with what was recorded for another text.
    """
    for index, pair in enumerate(zip(first, second, strict=True)):
        leaves = zip(*(pytree.tree_leaves(arguments) for arguments in pair), strict=True)
        for one, other in leaves:
            if isinstance(one, torch.Tensor) and not torch.equal(one, other):
                raise InputError(
                    f"{folder}: block {index} is given more of a text than its hidden states (embeddings by block, "
                    f"or the first hidden states again), which is not supported; {_SEE}"
                )
