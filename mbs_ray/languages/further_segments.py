"""Further segments of calibration for the experts of a mixture that too few tokens reach: of which languages.

What a segment of a language brings an expert is what one brought it on average. One segment after the other goes to the
language that adds the most missing tokens, summed over the starved experts.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Routed:
    """Tokens of calibration that reach experts: ``tokens`` [languages, experts], from ``segments`` of each language.

    An expert is starved below its ``least`` tokens.
    """

    tokens: np.ndarray
    segments: tuple[int, ...]
    least: np.ndarray

    @property
    def received(self) -> np.ndarray:
        """Tokens of each expert, of all languages."""
        received: np.ndarray = self.tokens.sum(0)
        return received

    @property
    def starved(self) -> np.ndarray:
        """Whether too few tokens reach each expert."""
        starved: np.ndarray = self.received < self.least
        return starved

    def expected(self, further: list[int]) -> np.ndarray:
        """Tokens of each expert that are expected with so many ``further`` segments of each language.

        To nine digits, at which thirds of a token add up to a whole one.
        """
        more = np.array(further) / np.array(self.segments)
        expected: np.ndarray = (self.received + more @ self.tokens).round(9)
        return expected


def further_segments(routed: Routed, at_most: int) -> list[int]:
    """Deal out segments, by language: until no expert is starved, none is helped, or there are ``at_most``.

    Of languages that add as many missing tokens the first is taken.
    """
    further = [0] * len(routed.segments)
    starved = routed.starved
    # In whole parts of a token, of Python's integers: what is exact is the same on every machine.
    parts = math.lcm(*routed.segments)
    per_segment = np.array([parts // segments for segments in routed.segments], dtype=object)
    brought = routed.tokens[:, starved].astype(object) * per_segment[:, None]
    missing = (routed.least - routed.received)[starved].astype(object) * parts
    for _ in range(at_most):
        added: list[Any] = [sum(np.minimum(missing, own)) for own in brought]
        most = max(added, default=0)
        if not most:
            break
        chosen = added.index(most)
        further[chosen] += 1
        missing = np.maximum(missing - brought[chosen], 0)
    return further
