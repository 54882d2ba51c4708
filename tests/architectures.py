"""Random small models of the architectures beside BLOOM, each in the variants that once needed code of their own."""

from collections.abc import Mapping
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

from tests.models import write_tokenizer

#: Shorter than any sequence of the tests, so that it matters.
WINDOW = 8
_COMMON: dict[str, Any] = {"vocab_size": 400, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
_GROUPED = {
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
_OPT = {
    "hidden_size": 32,
    "ffn_dim": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "init_std": 0.2,
}
_GPT2 = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 128, "initializer_range": 0.2}
_XGLM = {
    "d_model": 32,
    "ffn_dim": 64,
    "num_layers": 3,
    "attention_heads": 4,
    "max_position_embeddings": 128,
    "init_std": 0.2,
}

CONFIGS: Mapping[str, PretrainedConfig] = {
    "gpt2": GPT2Config(**_COMMON, **_GPT2),
    "gpt2-untied": GPT2Config(**_COMMON, **_GPT2, tie_word_embeddings=False, scale_attn_by_inverse_layer_idx=True),
    "xglm": XGLMConfig(**_COMMON, **_XGLM),
    "xglm-untied": XGLMConfig(**_COMMON, **_XGLM, tie_word_embeddings=False, scale_embedding=False),
    "opt": OPTConfig(**_COMMON, **_OPT, word_embed_proj_dim=32),
    "opt-post-norm": OPTConfig(**_COMMON, **_OPT, word_embed_proj_dim=16, do_layer_norm_before=False),
    "opt-untied": OPTConfig(**_COMMON, **_OPT, word_embed_proj_dim=32, enable_bias=False, tie_word_embeddings=False),
    "gemma3": Gemma3TextConfig(**_COMMON, **_GROUPED, **_SLIDING, query_pre_attn_scalar=8),
    "gemma3-untied": Gemma3TextConfig(
        **_COMMON, **_GROUPED, **_SLIDING, final_logit_softcapping=2.0, tie_word_embeddings=False
    ),
    "llama": LlamaConfig(**_COMMON, **_GROUPED, attention_bias=True, mlp_bias=True),
    "llama-untied": LlamaConfig(**_COMMON, **_GROUPED, tie_word_embeddings=False),
    "qwen3": Qwen3Config(**_COMMON, **_GROUPED, tie_word_embeddings=True),
    "qwen3-sliding": Qwen3Config(**_COMMON, **_GROUPED, **_SLIDING, use_sliding_window=True, tie_word_embeddings=False),
}
TIED_ONCE = ("gpt2", "xglm", "opt-post-norm", "gemma3", "llama", "qwen3-sliding")
"""One variant of each architecture, and each of the traps once."""


def write_architecture(folder: Path, name: str, dtype: torch.dtype = torch.bfloat16) -> Path:
    """The model of ``CONFIGS`` as ``save_pretrained`` leaves it; norms and biases are no ones and zeros."""
    generator = torch.Generator().manual_seed(7)
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(CONFIGS[name]).to(dtype)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator).to(dtype)
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def rewritten(folder: Path, change: Any) -> Path:
    """The weights of a folder, by name, as ``change`` makes them."""
    tensors = change(load_file(folder / "model.safetensors"))
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    return folder


def bare(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Names as on the hub's older checkpoints: those of the base model."""
    return {name.removeprefix("transformer.").removeprefix("model."): tensor for name, tensor in tensors.items()}
