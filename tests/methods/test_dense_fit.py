"""Fitting to the dense model: the step against ridge regression in float64, the strength against every other one."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mbs_ray.methods import Drift, HeldOut, Moment, Statistic, fitted, strengths
from mbs_ray.methods.dense_fit import DAMPING, SHARE


def sums(missing: Tensor, inputs: Tensor) -> tuple[Moment, Drift]:
    moment = Moment.zeros(inputs.shape[1], Statistic.FULL)
    moment.add(inputs)
    drift = Drift.zeros(missing.shape[1], inputs.shape[1])
    drift.add(missing, inputs)
    return moment, drift


def drawn(seed: int, tokens: int, rows: int, columns: int, noise: float = 0.3) -> tuple[Tensor, Tensor, Tensor]:
    """A weight, inputs of which columns depend on each other, and what is missing: partly theirs, partly noise."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    inputs = torch.randn(tokens, columns, generator=generator) @ torch.randn(columns, columns, generator=generator)
    missing = 0.1 * inputs @ torch.randn(columns, rows, generator=generator)
    return weight, inputs, missing + noise * torch.randn(tokens, rows, generator=generator)


@pytest.mark.parametrize("strength", [0.25, 1.0])
def test_the_step_is_that_of_ridge_regression(strength: float) -> None:
    weight, inputs, missing = drawn(0, 200, 7, 24)
    inputs[:, 5] = 0
    moment, drift = sums(missing, inputs)
    found = fitted({"w": weight}, moment, {"w": drift}, {"w": strength})["w"]
    x, d = inputs.double().numpy(), missing.double().numpy()
    live = np.arange(24) != 5
    ridge = DAMPING * np.mean(np.sum(x[:, live] ** 2, axis=0))
    # The rows of the data and those of the penalty, as one problem of least squares.
    stacked = np.vstack([x, np.sqrt(ridge) * np.eye(24)])
    step = np.linalg.lstsq(stacked, np.vstack([d, np.zeros((24, 7))]), rcond=None)[0].T
    np.testing.assert_allclose(found.numpy(), weight.numpy() + strength * step, atol=2e-5)
    assert torch.equal(found[:, 5], weight[:, 5])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_drift_or_strength_every_bit_stays(dtype: torch.dtype) -> None:
    weight, inputs, missing = drawn(1, 60, 5, 12)
    moment, drift = sums(missing, inputs)
    weights = {"w": weight.to(dtype)}
    for given_drift, strength in ((drift, 0.0), (Drift.zeros(5, 12), 1.0)):
        found = fitted(weights, moment, {"w": given_drift}, {"w": strength})["w"]
        assert found.dtype == dtype and torch.equal(found, weights["w"])


@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(2, 20), st.floats(0, 30))
def test_the_strength_is_half_of_the_best_of_all_and_never_worse_than_none(
    seed: int, held: int, others: int, noise: float
) -> None:
    weight, inputs, missing = drawn(seed, 8 * (held + others), 4, 6, noise)
    moment, drift = sums(missing, inputs)
    part, part_drift = sums(missing[: 8 * held], inputs[: 8 * held])
    taken = strengths({"w": weight}, moment, {"w": drift}, HeldOut(part, {"w": part_drift}))["w"]
    rest = sums(missing[8 * held :], inputs[8 * held :])
    step = fitted({"w": torch.zeros_like(weight)}, rest[0], {"w": rest[1]}, {"w": 1.0})["w"].double()

    def error(strength: float) -> float:
        answered = strength * inputs[: 8 * held].double() @ step.t()
        return float((answered - missing[: 8 * held].double()).square().sum())

    grid = np.linspace(0, 1, 201)
    best = grid[np.argmin([error(one) for one in grid])]
    assert taken == pytest.approx(SHARE * best, abs=SHARE * 0.006)
    assert error(taken) <= error(0) * (1 + 1e-6)


def test_where_all_is_held_out_or_nothing_no_step_is_taken() -> None:
    weight, inputs, missing = drawn(2, 40, 3, 8)
    moment, drift = sums(missing, inputs)
    nothing = HeldOut(Moment.zeros(8, Statistic.FULL), {"w": Drift.zeros(3, 8)})
    for held in (HeldOut(moment, {"w": drift}), nothing):
        assert strengths({"w": weight}, moment, {"w": drift}, held) == {"w": 0.0}
