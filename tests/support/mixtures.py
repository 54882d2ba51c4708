"""Random small models whose names transformers translates while it loads: mixtures of experts, wrappers, GPT-NeoX."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    CLIPVisionConfig,
    DeepseekV3Config,
    Gemma3Config,
    Gemma3TextConfig,
    GPTNeoXConfig,
    GptOssConfig,
    GraniteMoeConfig,
    LlamaConfig,
    LlavaConfig,
    Mistral3Config,
    MistralConfig,
    MixtralConfig,
    OlmoeConfig,
    PixtralVisionConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2MoeConfig,
    Qwen3MoeConfig,
    SiglipVisionConfig,
)

from tests.support.architectures import COMMON, GROUPED, WINDOW
from tests.support.models import write_tokenizer

_TWO_OF_FOUR = {"num_experts": 4, "num_experts_per_tok": 2}
_NO_HEAD_DIM = {name: value for name, value in GROUPED.items() if name != "head_dim"}
_SLIDING: dict[str, Any] = {
    "sliding_window": WINDOW,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
_VISION: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}
#: Low ranks of its attention, a block without experts before those with them, groups of experts, and a shared one.
_DEEPSEEK: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "n_routed_experts": 8,
    "n_group": 2,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "max_position_embeddings": 128,
}

MIXTURES: Mapping[str, PretrainedConfig] = {
    "qwen3-moe": Qwen3MoeConfig(
        **COMMON, **GROUPED, **_TWO_OF_FOUR, moe_intermediate_size=24, output_router_logits=True
    ),
    "mixtral": MixtralConfig(**COMMON, **GROUPED, num_local_experts=4),
    "olmoe": OlmoeConfig(**COMMON, **GROUPED, **_TWO_OF_FOUR),
    "deepseek-v3": DeepseekV3Config(**COMMON, **_DEEPSEEK, n_shared_experts=1),
    "gpt-oss": GptOssConfig(**COMMON, **GROUPED, **_SLIDING, num_local_experts=4, num_experts_per_tok=2),
    "qwen2-moe": Qwen2MoeConfig(
        **COMMON, **_NO_HEAD_DIM, **_TWO_OF_FOUR, moe_intermediate_size=24, shared_expert_intermediate_size=40
    ),
    "granite-moe": GraniteMoeConfig(**COMMON, **_NO_HEAD_DIM, num_local_experts=4, num_experts_per_tok=2),
}
WRAPPERS: Mapping[str, PretrainedConfig] = {
    "gemma3": Gemma3Config(
        text_config=Gemma3TextConfig(**COMMON, **GROUPED, **_SLIDING),
        vision_config=SiglipVisionConfig(**_VISION),
        image_token_index=399,
        mm_tokens_per_image=4,
    ),
    "mistral3": Mistral3Config(
        text_config=MistralConfig(**COMMON, **GROUPED),
        vision_config=PixtralVisionConfig(**_VISION),
        image_token_index=399,
    ),
    "llava": LlavaConfig(
        text_config=LlamaConfig(**COMMON, **GROUPED), vision_config=CLIPVisionConfig(**_VISION), image_token_index=399
    ),
}
RENAMED: Mapping[str, PretrainedConfig] = {
    "gpt-neox": GPTNeoXConfig(
        **COMMON,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=128,
    )
}
TRANSLATED = {**MIXTURES, **WRAPPERS, **RENAMED}


def model_class(name: str) -> Any:
    """The class that transformers loads a model of ``TRANSLATED`` with."""
    kind = type(TRANSLATED[name])
    wrapped = kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    return (MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING if wrapped else MODEL_FOR_CAUSAL_LM_MAPPING)[kind]


def write_translated(folder: Path, name: str, dtype: torch.dtype = torch.bfloat16) -> Path:
    """A model of ``TRANSLATED`` as ``save_pretrained`` leaves it, random in every parameter and router bias."""
    torch.manual_seed(7)
    model: PreTrainedModel = model_class(name)._from_config(TRANSLATED[name]).to(dtype)
    for parameter in model.parameters():
        random = torch.randn(parameter.shape, dtype=torch.float32)
        parameter.data.copy_(parameter + 0.1 * random if parameter.dim() == 1 else 0.2 * random)
    for buffer_name, buffer in model.named_buffers():
        if "correction" in buffer_name:
            buffer.copy_(0.1 * torch.randn(buffer.shape))
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def load_plain(folder: Path, name: str, dtype: torch.dtype = torch.float32) -> Any:
    """The model in plain transformers, its experts computed one by one; every tensor must find its place."""
    model, loading = model_class(name).from_pretrained(folder, dtype=dtype, output_loading_info=True)
    assert not any(loading.values()), loading
    if name in MIXTURES:
        model.set_experts_implementation("eager")
    return model.eval()
