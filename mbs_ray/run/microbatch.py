"""The number of segments that go through a block at a time."""

from typing import Literal

#: Tokens in one forward. A GPU wants many, to be busy; the caches of a CPU hold the activations of few: of 4,096 a
#: forward took half as long again per token.
_TOKENS = {"cuda": 4096, "cpu": 512}


def auto_microbatch(sequence_length: int, device: str) -> int:
    """Choose the number of segments in one forward on ``cuda`` or ``cpu``."""
    return max(1, _TOKENS[device] // sequence_length)


def settled_microbatch(asked: int | Literal["auto"], sequence_length: int, device: str) -> int:
    """Resolve ``auto`` in the number of segments that a run asks for."""
    return auto_microbatch(sequence_length, device) if asked == "auto" else asked
