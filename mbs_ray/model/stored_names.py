"""The names under which a checkpoint stores the parameters of a model, which transformers translates as it loads.

Some architectures were renamed (GPT-NeoX stores its head as ``embed_out``), experts are stored one by one and held
together, a saved base model lacks the prefix of the whole one, and a text model may be a part of another.
"""

import re
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    MergeModulelist,
    WeightConverter,
    WeightRenaming,
    rename_source_key,
)

from mbs_ray.errors import InputError
from mbs_ray.model.checkpoint import Checkpoint
from mbs_ray.model.checkpoint_files import CONFIG, INDEX
from mbs_ray.model.experts import Origin
from mbs_ray.model.slots import Slot
from mbs_ray.model.wrapper import Wrapper


class StoredNames:
    """Names of a checkpoint's tensors by those of the ``model`` that it holds, alone or inside a ``wrapper``."""

    def __init__(self, checkpoint: Checkpoint, model: PreTrainedModel, wrapper: Wrapper | None) -> None:
        self._checkpoint, self._wrapper = checkpoint, wrapper
        whole: Any = model if wrapper is None else wrapper.model
        transforms = get_model_conversion_mapping(whole)
        self._renamings = [one for one in transforms if isinstance(one, WeightRenaming)]
        self._converters = [one for one in transforms if isinstance(one, WeightConverter)]
        self._prefix, self._state = whole.base_model_prefix, whole.state_dict()
        self._stored: dict[str, str] = {}
        self._experts: dict[tuple[str, int, int], str] = {}
        self._rewritten: dict[str, WeightConverter] = {}
        for stored in checkpoint.tensors:
            self._add(stored)
        #: Stored names of the model's parameters that were asked for.
        self.parameters: set[str] = set()

    def find(self, name: str, shape: torch.Size | tuple[int, ...]) -> str:
        """Return the name under which the model's parameter ``name`` is stored.

        Raises :class:`InputError` where no shard holds it, or where its shape is not the configuration's.
        """
        stored = self.stored_name(name)
        if stored is None:
            raise InputError(self._missing(name))
        return self._checked(stored, shape)

    def stored_name(self, name: str) -> str | None:
        """Return the name under which the model's parameter ``name`` is stored, or None."""
        return self._stored.get(name)

    def slot(self, prefix: str, name: str, parameter: torch.Tensor, origin: Origin | None, transposed: bool) -> Slot:
        """Find where a parameter of the block with this prefix lies; for one of an expert by its ``origin``."""
        if origin is None:
            return Slot(self.find(prefix + name, parameter.shape), transposed and parameter.dim() == 2)
        held = prefix + origin.name
        if (stored := self._experts.get((held, origin.expert, origin.place))) is not None:
            return Slot(self._checked(stored, parameter.shape))
        if held in self._rewritten:
            converter = self._rewritten[held]
            raise InputError(self._missing(prefix + name) if _lists_experts(converter) else self._rule(held, converter))
        return Slot(self.find(held, origin.shape), origin.transposed, origin.expert, origin.rows)

    def _add(self, stored: str) -> None:
        name, pattern = self._translated(stored)
        if pattern is None:
            # A name that needs no translation has the last word.
            if name == stored or name not in self._stored:
                self._stored[name] = stored
            return
        converter = next(one for one in self._converters if pattern in one.source_patterns)
        self._rewritten[name] = converter
        # Some rules are written as expressions, some as plain names.
        numbered = re.escape(pattern.replace(r"\.", ".")).replace(r"\*", r"(\d+)")
        if _lists_experts(converter) and (found := re.search(numbered, self._renamed(stored))):
            self._experts[name, int(found[1]), converter.source_patterns.index(pattern)] = stored

    def _translated(self, stored: str) -> tuple[str, str | None]:
        """Return the name in the model, and the pattern of the rule by which tensors are fused, if one does."""
        name, pattern = stored, None
        # A name that the model has already stands for itself; a rule may well match it again.
        if stored not in self._state:
            name, pattern = rename_source_key(stored, self._renamings, self._converters, self._prefix, self._state)
        return (name if self._wrapper is None else self._wrapper.inward(name)), pattern

    def _renamed(self, stored: str) -> str:
        return rename_source_key(stored, self._renamings, [])[0]

    def _checked(self, stored: str, shape: torch.Size | tuple[int, ...]) -> str:
        folder = self._checkpoint.folder
        if (held := self._checkpoint.tensors[stored].shape) != tuple(shape):
            raise InputError(
                f"{folder}: {stored} is {list(held)}, the configuration says {list(shape)}; "
                f"correct {CONFIG}, or give the weights it was written for"
            )
        self.parameters.add(stored)
        return stored

    def _missing(self, name: str) -> str:
        folder = self._checkpoint.folder
        for held, converter in self._rewritten.items():
            if not _lists_experts(converter) and any(_plain(one) in name for one in converter.target_patterns):
                return self._rule(held, converter)
        for promised, file in self._checkpoint.promised.items():
            if name in (promised, self._translated(promised)[0]):
                return f"{folder / file}: lacks {promised}, which {INDEX} says it holds"
        return f"{folder}: the checkpoint lacks {name}"

    def _rule(self, held: str, converter: WeightConverter) -> str:
        steps = ", ".join(type(one).__name__ for one in converter.operations)
        return (
            f"{self._checkpoint.folder}: transformers makes {held} of {', '.join(converter.source_patterns)} by "
            f"{steps}, which is not supported; docs/architectures.md says which models can be compressed"
        )


def find_ends(names: StoredNames, model: PreTrainedModel, tied: bool) -> tuple[str, str, str | None]:
    """Find the stored names of the token embedding, of the head's weight and of its bias, if it has one.

    A tied head is the token embedding, unless the checkpoint holds one as well: then it has the last word, as in
    transformers, which unties what was tied by the configuration but differs in the file. A tied embedding may have
    been stored under the name of the head alone.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    of_module = {id(module): name for name, module in model.named_modules()}
    own, last = f"{of_module[id(embedding)]}.weight", of_module[id(head)]
    stored_head = names.stored_name(f"{last}.weight")
    if tied and names.stored_name(own) is None and stored_head:
        own = f"{last}.weight"
    first = names.find(own, embedding.weight.shape)
    weight = first if tied and stored_head is None else names.find(f"{last}.weight", head.weight.shape)
    return first, weight, None if head.bias is None else names.find(f"{last}.bias", head.bias.shape)


def _plain(pattern: str) -> str:
    """Return the name that a rule's pattern is of."""
    return pattern.replace("\\.", ".").strip("^$.")


def _lists_experts(converter: WeightConverter) -> bool:
    """Check whether a rule does nothing but put matrices of experts together, which are then used one by one."""
    kinds = [type(one) for one in converter.operations]
    return kinds in ([MergeModulelist], [MergeModulelist, Concatenate])
