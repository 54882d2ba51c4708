"""A model of which nothing is left but what makes logits of finished hidden states."""

import copy
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions


class _Finished(BaseModelOutputWithPastAndCrossAttentions):
    """What any causal model's head may read of the base model's output."""

    router_logits = None


class _PassThrough(nn.Module):
    """A stand-in for the base model, with which a model's forward applies nothing but its head."""

    def forward(self, *_: Any, inputs_embeds: Any, **__: Any) -> Any:
        return _Finished(last_hidden_state=inputs_embeds)


def head_alone(model: PreTrainedModel, blocks_path: str) -> Any:
    """Copy the model, with a module that passes its input through in the place of the one that holds the blocks."""
    alone = parent = _shallow_copy(model)
    *path, owner = blocks_path.split(".")[:-1]
    for name in path:
        parent._modules[name] = _shallow_copy(parent._modules[name])
        parent = parent._modules[name]
    parent._modules[owner] = _PassThrough()
    return alone


def _shallow_copy(module: Any) -> Any:
    copied = copy.copy(module)
    copied._modules = dict(module._modules)
    return copied


VOCABULARY_CHUNK = 32_768


def vocabulary_chunks(vocabulary: int) -> list[tuple[int, int]]:
    """Split the rows of the head into ranges (start, stop), each of which is on the device at once."""
    starts = range(0, vocabulary, VOCABULARY_CHUNK)
    return [(start, min(start + VOCABULARY_CHUNK, vocabulary)) for start in starts]
