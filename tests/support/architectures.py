"""Random small models of the architectures beside BLOOM, in the variants that code for one of them would miss."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    OPTConfig,
    PretrainedConfig,
    Qwen3Config,
    XGLMConfig,
)

from mbs_ray.text.segment_file import SegmentSet
from tests.support.models import write_tokenizer

#: Shorter than the sequences of the tests, so that it matters.
WINDOW = 8
COMMON: dict[str, Any] = {"vocab_size": 400, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
#: Two heads of queries share one of keys and values.
GROUPED: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
}
_SLIDING = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
_GPT2: dict[str, Any] = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 128, "initializer_range": 0.2}
_XGLM = {"d_model": 32, "ffn_dim": 64, "num_layers": 3, "attention_heads": 4, "init_std": 0.2}
_OPT = {"hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "init_std": 0.2}
_UNTIED = {"tie_word_embeddings": False}
_TIED = {"tie_word_embeddings": True}

CONFIGS: Mapping[str, PretrainedConfig] = {
    "gpt2": GPT2Config(**COMMON, **_GPT2),
    "gpt2-untied": GPT2Config(**COMMON, **_GPT2, **_UNTIED, scale_attn_by_inverse_layer_idx=True),
    "xglm": XGLMConfig(**COMMON, **_XGLM, max_position_embeddings=128),
    "xglm-untied": XGLMConfig(**COMMON, **_XGLM, **_UNTIED, max_position_embeddings=128, scale_embedding=False),
    "opt": OPTConfig(**COMMON, **_OPT, word_embed_proj_dim=32, max_position_embeddings=128),
    "opt-post-norm": OPTConfig(
        **COMMON, **_OPT, word_embed_proj_dim=16, max_position_embeddings=128, do_layer_norm_before=False
    ),
    "opt-untied": OPTConfig(
        **COMMON, **_OPT, **_UNTIED, word_embed_proj_dim=32, max_position_embeddings=128, enable_bias=False
    ),
    "gemma3": Gemma3TextConfig(**COMMON, **GROUPED, **_SLIDING),
    "gemma3-untied": Gemma3TextConfig(**COMMON, **GROUPED, **_SLIDING, **_UNTIED, final_logit_softcapping=2.0),
    "llama": LlamaConfig(**COMMON, **GROUPED, **_TIED, attention_bias=True, mlp_bias=True),
    "llama-untied": LlamaConfig(**COMMON, **GROUPED, **_UNTIED),
    "qwen3": Qwen3Config(**COMMON, **GROUPED, **_TIED),
    "qwen3-untied": Qwen3Config(**COMMON, **GROUPED, **_SLIDING, **_UNTIED, use_sliding_window=True),
}
#: One of each architecture.
SIX = ("gpt2", "xglm", "opt-post-norm", "gemma3", "llama", "qwen3-untied")


def write_architecture(folder: Path, name: str, dtype: torch.dtype = torch.bfloat16) -> Path:
    """A model of ``CONFIGS`` as ``save_pretrained`` leaves it; its norms and biases are more than ones and zeros."""
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(CONFIGS[name]).to(dtype)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data += 0.1 * torch.randn(parameter.shape).to(dtype)
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return folder


Tensors = dict[str, torch.Tensor]


def rewrite(folder: Path, change: Callable[[Tensors], Tensors]) -> Path:
    """Store the weights of a folder anew, as ``change`` gives them."""
    tensors = {name: tensor.clone() for name, tensor in change(load_file(folder / "model.safetensors")).items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def bare(tensors: Tensors) -> Tensors:
    """Names as older checkpoints of the hub have them: those of the base model."""
    return {name.removeprefix("transformer.").removeprefix("model."): tensor for name, tensor in tensors.items()}


def plain_perplexities(folder: Path, segments: SegmentSet) -> dict[str, float]:
    """By a plain loop over the segments, in float64 from float32 logits; every tensor must find its place."""
    model, loading = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not any(loading.values()), loading
    content = segments.read()
    nll: dict[str, list[float]] = {}
    with torch.no_grad():
        for ids, document, language in zip(content.token_ids, content.document_index, content.language, strict=True):
            tokens = torch.tensor(ids, dtype=torch.int64)
            scores = model(tokens[None], use_cache=False).logits[0].double().log_softmax(dim=-1)
            scored = [place for place in range(1, len(tokens)) if document[place] >= 0]
            nll.setdefault(language, []).extend(-float(scores[place - 1, tokens[place]]) for place in scored)
    return {language: math.exp(math.fsum(values) / len(values)) for language, values in nll.items()}
