"""The shapes of the minis: configurations of about the same size in several families."""

from collections.abc import Callable
from typing import Any

from transformers import BloomConfig, PretrainedConfig, Qwen3Config, Qwen3MoeConfig


def _bloom(vocabulary: int, length: int, width: int, blocks: int, heads: int) -> PretrainedConfig:
    config = BloomConfig(vocab_size=vocabulary, hidden_size=width, n_layer=blocks, n_head=heads)
    # ALiBi has no limit of its own, but the model has seen no longer segments.
    config.seq_length = length
    return config


def _of_qwen3(vocabulary: int, length: int, width: int, blocks: int, heads: int) -> dict[str, Any]:
    """Return what both kinds of Qwen 3 have: tied embeddings, and half as many heads of keys and values."""
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "num_hidden_layers": blocks,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 2,
        "head_dim": width // heads,
        "max_position_embeddings": length,
        "tie_word_embeddings": True,
    }


def _qwen3(vocabulary: int, length: int, width: int, blocks: int, heads: int) -> PretrainedConfig:
    """Build Qwen 3 with a gate so wide that a block is of BLOOM's size."""
    return Qwen3Config(**_of_qwen3(vocabulary, length, width, blocks, heads), intermediate_size=3 * width)


def _qwen3_moe(vocabulary: int, length: int, width: int, blocks: int, heads: int) -> PretrainedConfig:
    """Build Qwen 3 with 8 experts as wide as the model, two of them for each token."""
    return Qwen3MoeConfig(
        **_of_qwen3(vocabulary, length, width, blocks, heads),
        moe_intermediate_size=width,
        intermediate_size=width,
        num_experts=8,
        num_experts_per_tok=2,
        norm_topk_prob=True,
        # With it the loss of a training holds the balance of the experts, without which a few take all tokens.
        output_router_logits=True,
        router_aux_loss_coef=0.01,
    )


_SHAPES: dict[str, tuple[Callable[[int, int, int, int, int], PretrainedConfig], int, int, int]] = {
    "2m": (_bloom, 128, 6, 4),
    "5m": (_bloom, 192, 8, 8),
    "qwen3-5m": (_qwen3, 192, 8, 8),
    "qwen3-moe-4m": (_qwen3_moe, 128, 6, 4),
}
SHAPES = tuple(_SHAPES)


def shape_config(shape: str, vocabulary: int, length: int) -> PretrainedConfig:
    """Build the configuration of a shape for a vocabulary of so many tokens and segments of ``length`` tokens."""
    family, width, blocks, heads = _SHAPES[shape]
    config = family(vocabulary, length, width, blocks, heads)
    config.bos_token_id, config.eos_token_id, config.pad_token_id = 1, 2, 3
    return config
