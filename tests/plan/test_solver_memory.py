"""The formulas of working memory against the tensors that the methods really hold."""

import pytest
import torch

import mbs_ray.methods.columns
from mbs_ray.errors import InputError
from mbs_ray.methods import METHODS, Drift, HeldOut, Moment, Statistic, build_method, fitted, strengths
from mbs_ray.methods.factored import Factored
from mbs_ray.methods.kernel import TorchKernel
from mbs_ray.plan.live_bytes import LiveBytes
from mbs_ray.plan.solver_memory import factor_bytes, fitting_bytes, preparing_bytes, solving_bytes

_CASES = [
    {"name": "sparsegpt"},
    {"name": "sparsegpt", "keep_zeros": True},
    {"name": "sparsegpt", "pattern": "2:4"},
    {"name": "gptq", "bits": 4, "group_size": 128},
    {"name": "gptq", "bits": 3},
    {"name": "gptq", "bits": 3, "keep_zeros": True},
    {"name": "gptq", "bits": 4, "group_size": 128, "activation_order": True},
    {"name": "gptq", "bits": 4, "activation_order": True},
    {"name": "gptq", "bits": 4, "clip_search": True},
    {"name": "sparsegpt+gptq", "bits": 4, "group_size": 128},
    {"name": "sparsegpt+gptq", "bits": 4},
    {"name": "sparsegpt", "block_size": 1024},
    {"name": "gptq", "bits": 4, "group_size": 512},
    {"name": "sparsegpt+gptq", "bits": 4, "block_size": 512, "group_size": 64},
    {"name": "sparsegpt", "refine": 1},
    {"name": "sparsegpt", "pattern": "2:4", "refine": 1},
    {"name": "gptq", "bits": 4, "group_size": 128, "refine": 2},
    {"name": "gptq", "bits": 4, "refine": 1},
    {"name": "gptq", "bits": 4, "group_size": 32, "activation_order": True, "refine": 1},
    {"name": "sparsegpt+gptq", "bits": 4, "group_size": 128, "refine": 1},
    {"name": "wanda"},
    {"name": "wanda", "scope": "linear"},
    {"name": "wanda", "scope": "share"},
    {"name": "wanda", "pattern": "2:4"},
    {"name": "magnitude"},
    {"name": "magnitude", "pattern": "2:4"},
    {"name": "rtn", "bits": 4, "group_size": 128},
    {"name": "rtn", "bits": 4},
    {"name": "obc"},
    {"name": "obq", "bits": 4},
]


def _moment(method, columns):
    if method.statistic is Statistic.NONE:
        return None
    moment = Moment.zeros(columns, method.statistic)
    moment.add(torch.randn(2 * columns, columns, generator=torch.Generator().manual_seed(0)))
    return moment


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("spec", _CASES, ids=str)
def test_a_method_holds_what_the_plan_says_and_gives_it_back(spec, dtype, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(mbs_ray.methods.columns, "kernel_for", lambda _, dtype: TorchKernel(dtype, compiled=False))
        _holds_what_the_plan_says(spec, dtype, 0.94)
    _holds_what_the_plan_says(spec, dtype, 0.5)


def _holds_what_the_plan_says(spec, dtype, least):
    method = build_method(spec)
    rows, columns = (48, 128) if spec["name"] in ("obc", "obq") else (512, 1024)
    weight = torch.randn(rows, columns).to(dtype)
    with torch.inference_mode():
        moment = _moment(method, columns)
        prepared = {}
        if isinstance(method, Factored):
            with LiveBytes() as preparing:
                prepared = {"factor": method.prepare(moment)}
            assert preparing.peak == pytest.approx(preparing_bytes(method, columns), rel=0.1)
            assert preparing.now == pytest.approx(factor_bytes(method, columns), rel=0.01)
        with LiveBytes() as solving:
            result = method.compress(weight, moment, **prepared)
    assert least <= solving.peak / solving_bytes(method, rows, columns, dtype.itemsize) <= 1.06
    parts = [result.weight, result.codes, result.scales, result.zeros]
    assert solving.now == pytest.approx(sum(part.nbytes for part in parts if part is not None), rel=0.01)


@pytest.mark.parametrize("chooses", [True, False])
@pytest.mark.parametrize("rows", [256, 2048])
def test_fitting_holds_what_the_plan_says(chooses, rows):
    columns, generator = 1024, torch.Generator().manual_seed(0)
    weight = {"w": torch.randn(rows, columns).bfloat16()}
    inputs, missing = (torch.randn(2 * columns, one, generator=generator) for one in (columns, rows))
    sums = []
    for part in (slice(0, columns // 4), slice(None)):
        moment, drift = Moment.zeros(columns, Statistic.FULL), Drift.zeros(rows, columns)
        moment.add(inputs[part])
        drift.add(missing[part], inputs[part])
        sums.append((moment, {"w": drift}))
    (held, held_drifts), (moment, drifts) = sums
    with torch.inference_mode(), LiveBytes() as live:
        taken = strengths(weight, moment, drifts, HeldOut(held, held_drifts)) if chooses else {"w": 0.5}
        result = fitted(weight, moment, drifts, taken)
    assert live.now == result["w"].nbytes == 2 * rows * columns
    assert live.peak == pytest.approx(fitting_bytes(rows, columns, chooses), rel=0.06)


def test_every_method_has_a_formula():
    assert {build_method(spec).name for spec in _CASES} == set(METHODS)

    class Unknown:
        name = "unknown"

    with pytest.raises(InputError, match="unknown: no plan"):
        solving_bytes(Unknown(), 8, 8, 2)
