"""What programs that read packed checkpoints need, beyond the form itself: seen in them, version by version."""

from collections.abc import Iterable

from transformers import PretrainedConfig

from mbs_ray.errors import InputError
from mbs_ray.model.packed import IntegerScheme

TRANSFORMERS = "transformers"
VLLM = "vllm"
READERS = (TRANSFORMERS, VLLM)
#: With which versions it was seen what vLLM reads.
_VLLM_SEEN = "vLLM 0.32 with compressed-tensors 0.17"
#: Widths that it has kernels for. The layout of 3, 5, 6 and 7 bits changed in compressed-tensors 0.18.
_VLLM_BITS = (4, 8)
_FUSED = "query_key_value"


def refuse_unreadable(reader: str, config: PretrainedConfig, scheme: IntegerScheme) -> None:
    """Raise :class:`InputError` where the reader would not load a model packed by this scheme, or load it wrong."""
    if reader != VLLM:
        return
    if scheme.bits not in _VLLM_BITS:
        raise InputError(
            f"--reader {reader}: {_VLLM_SEEN} has no kernel for {scheme.bits} bits; it was seen to read 4, and by its "
            "source reads 8 on GPUs; for others take --format safetensors"
        )
    if not scheme.symmetric and config.model_type == "bloom":
        raise InputError(
            f"--reader {reader}: {_VLLM_SEEN} takes {_FUSED} apart by heads, and zero points of several heads lie in "
            "one word; run with symmetric: true, or take --format safetensors"
        )


def left_out(reader: str, config: PretrainedConfig, tensors: Iterable[str]) -> set[str]:
    """Return the tensors of a packed checkpoint that the reader stumbles over and does without.

    vLLM takes every tensor of BLOOM's fused linears apart by heads, also the two numbers of ``weight_shape``, which it
    knows from the configuration. Without them transformers does not load the checkpoint.
    """
    if reader != VLLM or config.model_type != "bloom":
        return set()
    return {name for name in tensors if name.endswith(f"{_FUSED}.weight_shape")}
