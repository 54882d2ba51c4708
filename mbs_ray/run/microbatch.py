"""The number of segments that go through a block at a time."""

from typing import Literal

from mbs_ray.model.decoder import Decoder

#: Tokens in one forward: a GPU wants many, to be busy.
_MOST_TOKENS = 4096
#: On a CPU as many as its caches hold the hidden states of, in numbers: of two to four times as many, a forward takes
#: up to a fifth longer per token. Of fewer tokens than that many, products are slow, whatever the caches hold, and
#: slower the fewer there are; but scores of attention that lie in memory grow with the tokens.
_CACHED_NUMBERS, _LEAST_TOKENS, _LEAST_WITHOUT_SCORES = 2**18, 512, 1024


def auto_microbatch(sequence_length: int, device: str, decoder: Decoder) -> int:
    """Choose the number of segments in one forward on ``cuda`` or ``cpu``."""
    tokens = _MOST_TOKENS
    if device == "cpu":
        least = _LEAST_TOKENS if decoder.holds_scores else _LEAST_WITHOUT_SCORES
        tokens = min(_MOST_TOKENS, max(least, _CACHED_NUMBERS // decoder.checkpoint.hidden_size))
    return max(1, tokens // sequence_length)


def settled_microbatch(asked: int | Literal["auto"], sequence_length: int, device: str, decoder: Decoder) -> int:
    """Resolve ``auto`` in the number of segments that a run asks for."""
    return auto_microbatch(sequence_length, device, decoder) if asked == "auto" else asked
