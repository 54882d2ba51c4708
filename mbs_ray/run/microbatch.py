"""The number of segments that go through a block at a time."""

from typing import Literal


def auto_microbatch(sequence_length: int, tokens: int = 4096) -> int:
    """Choose the number of segments in one forward: about ``tokens`` tokens."""
    return max(1, tokens // sequence_length)


def settled_microbatch(asked: int | Literal["auto"], sequence_length: int) -> int:
    """Resolve ``auto`` in the number of segments that a run asks for."""
    return auto_microbatch(sequence_length) if asked == "auto" else asked
