"""What programs that read packed checkpoints need, beyond the form itself: seen in them, version by version."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from mbs_ray.errors import InputError
from mbs_ray.model.packed import Schemes

if TYPE_CHECKING:
    from transformers import PretrainedConfig

TRANSFORMERS = "transformers"
VLLM = "vllm"
READERS = (TRANSFORMERS, VLLM)
#: With which versions it was seen what vLLM reads.
_VLLM_SEEN = "vLLM 0.32 with compressed-tensors 0.17"
_TRANSFORMERS_SEEN = "transformers 5.23 with compressed-tensors 0.20"
#: Widths that it has kernels for. The layout of 3, 5, 6 and 7 bits changed in compressed-tensors 0.18.
_VLLM_BITS = (4, 8)
_FUSED = "query_key_value"


def refuse_unreadable(reader: str, config: "PretrainedConfig", schemes: Schemes) -> None:
    """Raise :class:`InputError` where the reader would not load a model packed by these schemes, or load it wrong."""
    scheme = schemes.common
    if reader != VLLM:
        if len(schemes.all) > 1 and not scheme.symmetric:
            raise InputError(
                f"--reader {reader}: {_TRANSFORMERS_SEEN} reads zero points only of checkpoints with one width; run "
                "with symmetric: true, or take --format safetensors"
            )
        return
    if wrong := [one.bits for one in schemes.all if one.bits not in _VLLM_BITS]:
        raise InputError(
            f"--reader {reader}: {_VLLM_SEEN} has no kernel for {wrong[0]} bits; it was seen to read 4, and by its "
            "source reads 8 on GPUs; for others take --format safetensors"
        )
    if not scheme.symmetric and config.model_type == "bloom":
        raise InputError(
            f"--reader {reader}: {_VLLM_SEEN} takes {_FUSED} apart by heads, and zero points of several heads lie in "
            "one word; run with symmetric: true, or take --format safetensors"
        )


def left_out(reader: str, config: "PretrainedConfig", tensors: Iterable[str]) -> set[str]:
    """Return the tensors of a packed checkpoint that the reader stumbles over and does without.

    vLLM takes every tensor of BLOOM's fused linears apart by heads, also the two numbers of ``weight_shape``, which it
    knows from the configuration. Without them transformers does not load the checkpoint.
    """
    if reader != VLLM or config.model_type != "bloom":
        return set()
    return {name for name in tensors if name.endswith(f"{_FUSED}.weight_shape")}
