"""The number of segments that go through a block at a time."""

from typing import Literal

#: Tokens in one forward: a GPU wants many, to be busy.
_MOST_TOKENS = 4096
#: On a CPU as many as its caches hold the hidden states of, in numbers: of two to four times as many, a forward takes
#: up to a fifth longer per token. Of fewer tokens than that many, products are slow, whatever the caches hold.
_CACHED_NUMBERS, _LEAST_TOKENS = 2**18, 512


def auto_microbatch(sequence_length: int, device: str, hidden_size: int) -> int:
    """Choose the number of segments in one forward on ``cuda`` or ``cpu``."""
    tokens = _MOST_TOKENS
    if device == "cpu":
        tokens = min(_MOST_TOKENS, max(_LEAST_TOKENS, _CACHED_NUMBERS // hidden_size))
    return max(1, tokens // sequence_length)


def settled_microbatch(asked: int | Literal["auto"], sequence_length: int, device: str, hidden_size: int) -> int:
    """Resolve ``auto`` in the number of segments that a run asks for."""
    return auto_microbatch(sequence_length, device, hidden_size) if asked == "auto" else asked
