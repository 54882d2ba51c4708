"""Intervals of the bootstrap over segments: closed forms, a plain loop, coverage, and the normal theory."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mbs_ray.evaluation import intervals
from mbs_ray.evaluation.intervals import LEVEL, RESAMPLES, bootstrap_means, percentile_interval, resamples


def test_equal_segments_give_an_interval_of_no_width() -> None:
    interval = percentile_interval(bootstrap_means(np.full(7, 6.25), np.full(7, 5), "sw"))
    assert interval == (1.25, 1.25)


def test_one_segment_gives_no_interval() -> None:
    assert percentile_interval(bootstrap_means(np.array([6.25]), np.array([5]), "sw")) is None


@given(st.lists(st.tuples(st.floats(0.0, 1e3), st.integers(1, 500)), min_size=2, max_size=20))
def test_an_interval_lies_within_the_segments_and_orders_its_ends(sums: list[tuple[float, int]]) -> None:
    values, tokens = np.array([value for value, _ in sums]), np.array([count for _, count in sums])
    interval = percentile_interval(bootstrap_means(values, tokens, "en"))
    assert interval is not None
    slack = 1e-9 * (1 + values.max())
    assert (values / tokens).min() - slack <= interval.low <= interval.high <= (values / tokens).max() + slack


def test_every_resample_is_the_ratio_of_sums_that_a_plain_loop_makes(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(1)
    values, tokens = random.gamma(2.0, 3.0, 9), random.integers(1, 60, 9)
    means = bootstrap_means(values, tokens, "ta")
    monkeypatch.setattr(intervals, "_INDICES_AT_ONCE", 9 * 7)  # parts change nothing
    rows = [row for part in resamples(9, "ta") for row in part.tolist()]
    assert len(rows) == RESAMPLES and all(len(row) == 9 for row in rows)
    expected = [math.fsum(values[i] for i in row) / sum(int(tokens[i]) for i in row) for row in rows]
    assert means == pytest.approx(expected, rel=1e-12)
    ordered = sorted(expected)
    interval = percentile_interval(means)
    # numpy's default quantile: linear between the order statistics on either side of q (n - 1).
    for end, share in zip(interval, ((1 - LEVEL) / 2, (1 + LEVEL) / 2), strict=True):
        place = share * (RESAMPLES - 1)
        below = math.floor(place)
        assert end == pytest.approx(ordered[below] + (place - below) * (ordered[below + 1] - ordered[below]), rel=1e-9)


def test_languages_are_drawn_independently_and_each_the_same_every_time() -> None:
    values, tokens = np.random.default_rng(2).gamma(2.0, 3.0, (2, 40))
    tokens = np.ceil(tokens).astype(np.int64)
    english, again, swahili = (bootstrap_means(values, tokens, language) for language in ("en", "en", "sw"))
    assert (english == again).all()
    assert abs(np.corrcoef(english, swahili)[0, 1]) < 0.1


def test_the_width_is_that_of_normal_theory_where_segments_are_many() -> None:
    """For segments of equal length the mean has the standard error s/√n; 3.92 of them span 95 %."""
    values = np.random.default_rng(3).normal(100.0, 5.0, 400)
    interval = percentile_interval(bootstrap_means(values, np.full(400, 32), "en"))
    expected = 2 * 1.959964 * values.std(ddof=1) / math.sqrt(400) / 32
    assert interval.high - interval.low == pytest.approx(expected, rel=0.1)


def test_about_95_of_100_intervals_hold_the_true_ratio() -> None:
    random = np.random.default_rng(4)
    covered = 0
    for _ in range(200):
        tokens = random.integers(20, 64, 50)
        values = tokens * 3.0 + random.normal(0.0, 12.0, 50)
        interval = percentile_interval(bootstrap_means(values, tokens, "en"))
        covered += interval.low <= 3.0 <= interval.high
    # Binomial(200, 0.95) lies between 180 and 198 but for one case in some thousands.
    assert 180 <= covered <= 198
