"""Confidence intervals of a mean per token, by a bootstrap whose blocks are segments.

Tokens of one segment depend on each other, so whole segments are drawn with replacement, as many as there are, and
the estimate Σ value / Σ tokens is computed each time; the interval is that of the percentiles (Efron and Tibshirani,
An Introduction to the Bootstrap, 1993, chapter 13; blocks: Künsch 1989). Neighbouring segments of one long document
count as independent, and few segments give intervals that are somewhat too narrow.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mbs_ray.text.unit_draw import generator

RESAMPLES = 2000
LEVEL = 0.95
SEED = 0
_INDICES_AT_ONCE = 2**21


class Interval(NamedTuple):
    """Both ends of a confidence interval, in the unit of the estimate."""

    low: float
    high: float


@dataclass(frozen=True, eq=False)
class SegmentSums:
    """Sums of one language by segment: its number int32, ``nll`` of its scored tokens in nats float64, and how many
    they are int64, at least 1; all [segments], in the order of the numbers.
    """

    segment: npt.NDArray[np.int32]
    nll: npt.NDArray[np.float64]
    tokens: npt.NDArray[np.int64]


def resamples(segments: int, language: str) -> Iterator[npt.NDArray[np.int64]]:
    """Yield RESAMPLES rows of ``segments`` indices below ``segments``, some rows at a time; the same at every call."""
    random = generator(SEED, language, "bootstrap")
    rows = max(1, _INDICES_AT_ONCE // segments)
    for start in range(0, RESAMPLES, rows):
        yield random.integers(segments, size=(min(rows, RESAMPLES - start), segments))


def bootstrap_means(
    values: npt.NDArray[np.float64], tokens: npt.NDArray[np.int64], language: str
) -> npt.NDArray[np.float64]:
    """Compute Σ values / Σ tokens of each resample, float64 [RESAMPLES]; NaN where there is a single segment.

    ``values`` and ``tokens`` hold one sum per segment. ``language`` seeds the drawing: languages are drawn
    independently of each other, two runs of one language with the same resamples.
    """
    if len(values) < 2:
        return np.full(RESAMPLES, np.nan)
    # A resample draws whole segments, as many as there are, with replacement. Their sums suffice: the mean per token is
    # a ratio, and numerator and denominator are summed over the same drawn segments. Because the language alone seeds
    # the drawing, two models get the same resamples, so that their difference is bootstrapped as one of pairs.
    return np.concatenate(
        [values[drawn].sum(axis=1) / tokens[drawn].sum(axis=1) for drawn in resamples(len(values), language)]
    )


def percentile_interval(estimates: npt.NDArray[np.float64]) -> Interval | None:
    """Return the interval that holds LEVEL of the bootstrapped estimates; None where they could not be made."""
    if not np.isfinite(estimates).all():
        return None
    low, high = np.quantile(estimates, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high))


def interval_text(interval: Interval | None, form: str = ".3f") -> str:
    """Format an interval as ``1.021 … 1.043``; empty where there is none."""
    return "" if interval is None else f"{interval.low:{form}} … {interval.high:{form}}"
