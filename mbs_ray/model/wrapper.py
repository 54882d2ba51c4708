"""A text model inside another that takes images or sound as well: its blocks are compressed in place."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_MULTIMODAL_LM_MAPPING,
    PretrainedConfig,
    PreTrainedModel,
)

from mbs_ray.errors import InputError
from mbs_ray.model.checkpoint_files import CONFIG
from mbs_ray.model.configuration import empty_model
from mbs_ray.model.experts import routers_of
from mbs_ray.model.linears import linears_of
from mbs_ray.model.slots import Slot

_MAPPINGS = (MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, MODEL_FOR_MULTIMODAL_LM_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING)


@dataclass(frozen=True)
class Wrapper:
    """The whole ``model``, without weights, around a text model; ``path`` leads to its base model.

    ``prefix`` is that of the base model in the text model alone. Heads are named apart.
    """

    model: PreTrainedModel
    path: str
    prefix: str
    head: str
    own_head: str

    def inward(self, name: str) -> str:
        """Translate a name in the wrapper to that in the text model; what is no part of it keeps its name."""
        for outer, inner in self._parts:
            if name.startswith(outer):
                return inner + name.removeprefix(outer)
        # A tower may have names that the text model has, too.
        return f"wrapper.{name}"

    def outward(self, name: str) -> str:
        """Translate a name in the text model to that in the wrapper."""
        for outer, inner in self._parts:
            if f"{name}.".startswith(inner):
                return outer + name.removeprefix(inner) if name.startswith(inner) else outer.removesuffix(".")
        return name

    @property
    def _parts(self) -> tuple[tuple[str, str], ...]:
        return (f"{self.path}.", f"{self.prefix}."), (f"{self.head}.", f"{self.own_head}.")


def find_wrapper(
    folder: Path, config: PretrainedConfig, text_model: PreTrainedModel, dtype: torch.dtype
) -> Wrapper | None:
    """Find where the text model lies in the model that a configuration describes; None where it is that model.

    Raises :class:`InputError` for a wrapper that holds the text model in another form than transformers has it alone.
    """
    if config.get_text_config() is config:
        return None
    made = next((mapping[type(config)] for mapping in _MAPPINGS if type(config) in mapping), None)
    whole = None if made is None else empty_model(folder, config, dtype, made)
    base: Any = text_model.base_model
    places = [] if whole is None else [path for path, one in whole.named_modules() if type(one) is type(base)]
    head = None if whole is None else whole.get_output_embeddings()
    if whole is None or len(places) != 1 or head is None or base.state_dict().keys() != _keys(whole, places[0]):
        raise InputError(
            f"{folder / CONFIG}: {config.model_type} wraps a text model in another form than "
            f"{type(text_model).__name__} has it, which is not supported; save the text model as a checkpoint of its "
            "own; docs/architectures.md says which models can be compressed"
        )
    own_head = _name_of(text_model, text_model.get_output_embeddings())
    return Wrapper(whole, places[0], text_model.base_model_prefix, _name_of(whole, head), own_head)


def linears_beside(
    text_model: nn.Module,
    path: str,
    blocks: Sequence[nn.Module],
    slots: Sequence[Mapping[str, Slot]],
    wrapper: Wrapper | None,
) -> list[str]:
    """List the names, in the whole model, of the linears that are left alone: the head, routers, other towers.

    ``path`` leads to the ``blocks``, in whose places the text model has stand-ins. Routers are named as they are
    stored, too: vLLM knows them so.
    """
    routers = [(index, name) for index, block in enumerate(blocks) for name in sorted(routers_of(block))]
    own = [*linears_of(text_model), *(f"{path}.{index}.{name}" for index, name in routers)]
    stored = [slots[index][f"{name}.weight"].stored.removesuffix(".weight") for index, name in routers]
    if wrapper is None:
        return list(dict.fromkeys([*own, *stored]))
    inside = (f"{wrapper.path}.", f"{wrapper.head}.")
    others = [name for name in linears_of(wrapper.model) if not f"{name}.".startswith(inside)]
    return list(dict.fromkeys([*map(wrapper.outward, own), *stored, *others]))


def _keys(model: nn.Module, path: str) -> set[str]:
    return set(model.get_submodule(path).state_dict())


def _name_of(model: nn.Module, wanted: Any) -> str:
    return next(name for name, one in model.named_modules() if one is wanted)
