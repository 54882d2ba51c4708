"""Mean and spread of what was measured over seeds: how much of a difference is the draw of the calibration text?"""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

#: Beginning of the names of spreads: ``seed_sd/ppl_increase/sw``.
SPREAD = "seed_sd"


class SeedMean(NamedTuple):
    """Arithmetic mean over seeds and sample standard deviation (n − 1); None where a value is not finite."""

    mean: float
    deviation: float | None

    @property
    def spread_text(self) -> str:
        """The deviation as text, with its sign before it; empty where there is none."""
        return "" if self.deviation is None else f"± {self.deviation:.3f}"


def seed_means(runs: Sequence[Mapping[str, float]]) -> dict[str, SeedMean]:
    """Average the metrics that all of at least two runs have."""
    shared = [name for name in runs[0] if all(name in run for run in runs)]
    found = {}
    for name in shared:
        values = [run[name] for run in runs]
        finite = all(map(math.isfinite, values))
        found[name] = SeedMean(sum(values) / len(values), statistics.stdev(values) if finite else None)
    return found
