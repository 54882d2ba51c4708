"""Planned memory against closed forms, and against the tensors of real forwards."""

import pytest
import torch

from mbs_ray.compression.collect import collect
from mbs_ray.compression.collect_drift import Pair, collect_with_drift, residual_writers
from mbs_ray.methods import Statistic, build_method, moments
from mbs_ray.model.checkpoint import Checkpoint
from mbs_ray.model.decoder import Decoder
from mbs_ray.plan.live_bytes import LiveBytes
from mbs_ray.plan.meta_checkpoint import MetaCheckpoint, MetaDecoder, meta_checkpoint
from mbs_ray.plan.planned_work import PlannedRun, TokenBatches
from mbs_ray.plan.stage_memory import Phase, block_bytes, inputs_of, phases_of
from mbs_ray.run.modes import DenseFit

#: Parameters of the repositories on the hub.
_PARAMETERS = {
    "bigscience/bloom-560m": 559_214_592,
    "bigscience/bloom-1b1": 1_065_314_304,
    "bigscience/bloom-1b7": 1_722_408_960,
    "bigscience/bloom-3b": 3_002_557_440,
    "bigscience/bloom-7b1": 7_069_016_064,
    "bigscience/bloom": 176_247_271_424,
}


@pytest.fixture(scope="module")
def largest() -> MetaDecoder:
    return MetaDecoder(meta_checkpoint("bigscience/bloom"), torch.bfloat16)


def _work(decoder, method="sparsegpt", **more) -> PlannedRun:
    return PlannedRun(
        "run", decoder, build_method(method), TokenBatches(256, 2048, 2), (TokenBatches(160, 2048, 2),), **more
    )


@pytest.mark.parametrize("model", _PARAMETERS)
def test_sizes_of_the_hubs_models_are_known_without_it(model):
    tensors = meta_checkpoint(model).tensors.values()
    assert sum(torch.Size(info.shape).numel() for info in tensors) == _PARAMETERS[model]
    assert {info.dtype.itemsize for info in tensors} == {2}


def test_moments_and_factor_of_the_largest_bloom(largest):
    """Three inputs of 14,336 columns and one of 57,344: 12.25 GiB for that moment, and as much for its factor."""
    phases = {phase.name: phase for phase in phases_of(_work(largest), range(70), last=True)}
    moments = 4 * (3 * 14336**2 + 57344**2)
    assert phases["collect"].device["moments"] == phases["solve"].device["moments"] == moments
    assert phases["solve"].device["factor"] == 4 * 57344**2 == 12.25 * 2**30
    assert phases["collect"].device["block"] == block_bytes(largest, 0) == 2 * (12 * 14336**2 + 13 * 14336)
    assert [columns for columns, _ in inputs_of(largest, 69)] == [14336, 14336, 14336, 57344]


def test_diagonal_methods_keep_vectors(largest):
    phases = {phase.name: phase for phase in phases_of(_work(largest, "wanda"), [0], last=False)}
    assert phases["collect"].device["moments"] == 4 * (3 * 14336 + 57344)
    assert "collect" not in {phase.name for phase in phases_of(_work(largest, "magnitude"), [0], last=False)}


@pytest.fixture
def without_matrix_units(monkeypatch):
    """Those of a CPU pack tokens, which no plan counts: 30 MiB, and 84 for the widest linears."""
    monkeypatch.setattr(moments, "add_squares", lambda *_: False)


@pytest.mark.usefixtures("without_matrix_units")
@pytest.mark.parametrize("statistic", [Statistic.NONE, Statistic.FULL])
def test_a_forward_holds_as_much_as_the_same_one_with_numbers(bloom, statistic):
    """The planner's forward without memory against the stage's own, tensor for tensor."""
    checkpoint = Checkpoint(bloom)
    real = Decoder(checkpoint, torch.float32)
    planned = MetaDecoder(meta_checkpoint(str(bloom)), torch.float32)
    work = PlannedRun("run", planned, build_method("sparsegpt"), TokenBatches(6, 96, 3), ())
    phases = {phase.name: phase.device for phase in phases_of(work, [1], last=False)}
    with torch.inference_mode():
        hidden = [torch.randn(3, 96, 32) for _ in range(2)]
        block = real.load_block(1, real.read_block(1))
        real.run_block(block, 1, hidden[0])
        with LiveBytes() as live:
            if statistic is Statistic.NONE:
                real.run_block(block, 1, hidden[0])
            else:
                collected = collect(real, block, 1, hidden, statistic)
    parts = phases["propagate"] if statistic is Statistic.NONE else phases["collect"]
    sums = parts.get("moments", 0)
    assert sums == (4 * (3 * 32**2 + 128**2) if statistic is Statistic.FULL else 0)
    assert live.peak == parts["forward"] + sums
    if statistic is Statistic.FULL:
        assert sum({id(one): one.sum.nbytes for one in collected.moments.values()}.values()) == sums


@pytest.mark.usefixtures("without_matrix_units")
@pytest.mark.parametrize("strength", ["auto", 0.5])
def test_fitting_holds_drifts_and_both_models_states(strength, bloom, largest):
    real = Decoder(Checkpoint(bloom), torch.float32)
    planned = MetaDecoder(meta_checkpoint(str(bloom)), torch.float32)
    fit = DenseFit(strength=strength)
    work = PlannedRun("run", planned, build_method("wanda"), TokenBatches(6, 96, 3), (), fit=fit)
    collected = next(one for one in phases_of(work, [1], last=False) if one.name == "collect").device
    sums = 4 * (3 * 32**2 + 128**2 + 12 * 32**2) * (2 if strength == "auto" else 1)
    assert collected["moments"] == sums
    with torch.inference_mode():
        held = torch.tensor([True, False, False]) if strength == "auto" else None
        pairs = [Pair(torch.randn(3, 96, 32), torch.randn(3, 96, 32), held) for _ in range(2)]
        block = real.load_block(1, real.read_block(1))
        real.run_block(block, 1, pairs[0].hidden)
        writers = residual_writers(real, block, 1)
        with LiveBytes() as live:
            collect_with_drift(real, block, block, 1, pairs, lambda _: None, writers)
    assert live.peak == collected["forward"] + sums
    assert len(work.batches) == 2
    phases = {one.name: one for one in phases_of(_work(largest, fit=fit), [0], last=False)}
    plain = {one.name: one for one in phases_of(_work(largest), [0], last=False)}
    assert phases["propagate"] == plain["propagate"]
    assert phases["collect"].device["microbatch"] == 2 * plain["collect"].device["microbatch"]
    whole = 4 * (3 * 14336**2 + 57344**2 + 12 * 14336**2) * (2 if strength == "auto" else 1)
    assert phases["collect"].device["moments"] == phases["solve"].device["moments"] == whole


def test_memory_follows_the_block_and_not_the_model():
    shapes = meta_checkpoint("bigscience/bloom-7b1"), meta_checkpoint("bigscience/bloom-7b1")
    shapes[0].config.n_layer = 3
    outlines = (MetaCheckpoint("seven", one.config, torch.bfloat16) for one in shapes)
    short, long = (MetaDecoder(one, torch.float32) for one in outlines)
    assert (short.blocks, long.blocks) == (3, 30)
    of_short, of_long = (phases_of(_work(one), range(one.blocks), last=True) for one in (short, long))
    assert of_short == of_long


def test_measuring_by_language_holds_the_dense_weights_too(largest):
    phases = {phase.name: phase for phase in phases_of(_work(largest, per_language=True), [0], last=False)}
    weights = 12 * 14336**2
    assert phases["measure"].host["solved weights"] == 2 * weights
    assert phases["measure"].device["changes"] == 2 * weights + 8 * 4 * 14336**2


def test_on_a_cpu_there_is_one_memory():
    phase = Phase("solve", {"moments": 5, "weight": 7, "microbatch": 9}, {"moments": 1, "block as stored": 2})
    assert phase.on_cpu() == Phase("solve", {}, {"moments": 6, "block as stored": 2})
