"""How many segments go through a block at a time."""

from typing import Literal


def auto_microbatch(sequence_length: int, tokens: int = 4096) -> int:
    """Segments in one forward: about ``tokens`` tokens."""
    return max(1, tokens // sequence_length)


def settled_microbatch(asked: int | Literal["auto"], sequence_length: int) -> int:
    """What a run asks for, its ``auto`` settled."""
    return auto_microbatch(sequence_length) if asked == "auto" else asked
