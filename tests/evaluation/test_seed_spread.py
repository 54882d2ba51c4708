"""Mean and sample standard deviation over seeds, of what all runs measured."""

import math

import pytest

from mbs_ray.evaluation.seed_spread import SeedMean, seed_means


def test_the_spread_is_the_sample_standard_deviation() -> None:
    found = seed_means([{"a": 1.0, "b": 5.0}, {"a": 2.0, "b": 5.0}, {"a": 6.0, "b": 5.0}])
    assert found == {"a": SeedMean(3.0, pytest.approx(math.sqrt(7))), "b": SeedMean(5.0, 0.0)}
    assert found["b"].spread_text == "± 0.000" and found["a"].spread_text == "± 2.646"


def test_what_one_run_lacks_is_left_out_and_what_is_not_finite_has_no_spread() -> None:
    found = seed_means([{"a": 1.0, "b": math.inf, "c": 1.0}, {"a": 2.0, "b": 5.0}])
    assert set(found) == {"a", "b"}
    assert found["b"] == SeedMean(math.inf, None) and found["b"].spread_text == ""
