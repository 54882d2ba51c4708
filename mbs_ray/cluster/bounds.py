"""What bounds the memory of stages, whatever the number of runs and segments."""

from typing import Literal

#: Where activations lie: device memory (on a CPU the host's), host memory, a local disk.
TierName = Literal["none", "host", "nvme"]
#: Microbatches a sender may have under way that the receiver has not yet stored.
CREDITS = 2
#: Runs whose activations a stage holds: the one it computes and the one it is receiving.
RUNS_HELD = 2


def auto_microbatch(sequence_length: int, tokens: int = 4096) -> int:
    """Segments in one forward: about ``tokens`` tokens."""
    return max(1, tokens // sequence_length)


def settled_microbatch(asked: int | Literal["auto"], sequence_length: int) -> int:
    """What a run asks for, its ``auto`` settled."""
    return auto_microbatch(sequence_length) if asked == "auto" else asked
