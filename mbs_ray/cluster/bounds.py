"""What bounds the memory of stages, whatever the number of runs and segments."""

from typing import Literal

#: Where activations lie: device memory (on a CPU the host's), host memory, a local disk.
TierName = Literal["none", "host", "nvme"]

#: Microbatches that a sender may have sent and the receiver has not yet stored.
CREDITS = 2

#: Runs whose activations a stage holds: the one it computes and the one it is receiving.
RUNS_HELD = 2

#: The next stage may be busy for hours with the two runs it holds; one that takes nothing for so long hangs.
HANDOVER_SECONDS = 3 * 24 * 3600.0
