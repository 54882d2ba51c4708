"""What the plan adds for the experts of a mixture, against the tensors of real blocks; nothing for dense models."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mbs_ray.compression.routing import Routes, collect_routed
from mbs_ray.methods import Statistic, build_method
from mbs_ray.model.checkpoint import Checkpoint
from mbs_ray.model.decoder import Decoder
from mbs_ray.plan.expert_work import all_tokens_seconds, expert_weights, first_mixture, joining_seconds, loading_seconds
from mbs_ray.plan.live_bytes import LiveBytes
from mbs_ray.plan.measured_rates import measure_rates
from mbs_ray.plan.meta_checkpoint import MetaDecoder, meta_checkpoint
from mbs_ray.plan.planned_work import PlannedRun, TokenBatches
from mbs_ray.plan.rates import assumed_rates
from mbs_ray.plan.stage_memory import block_bytes, joined_bytes, phases_of
from mbs_ray.plan.stage_time import moment_operations, stage_seconds
from tests.support.mixtures import write_translated

RATES = assumed_rates("cpu", False, 1, torch.float32)


@pytest.fixture(scope="module")
def fused(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that holds all experts of a block in one tensor; its first block has none."""
    return write_translated(tmp_path_factory.mktemp("fused") / "gpt-oss", "gpt-oss")


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that holds its experts one by one, after a block without any."""
    return write_translated(tmp_path_factory.mktemp("listed") / "deepseek-v3", "deepseek-v3")


def planned(model: Path, method: str = "sparsegpt", **changes: object) -> PlannedRun:
    decoder = MetaDecoder(meta_checkpoint(str(model)), torch.float32)
    run = PlannedRun("run", decoder, build_method(method), TokenBatches(4, 24, 2), (TokenBatches(2, 24, 2),))
    return replace(run, **changes)  # type: ignore[arg-type]


def test_a_block_is_put_together_in_as_many_bytes_as_the_plan_says(fused: Path) -> None:
    decoder = Decoder(Checkpoint(fused), torch.float32)
    tensors = decoder.read_block(1)
    with LiveBytes() as live:
        stored = decoder.to_stored(1, tensors)
    biases = sum(stored[name].nbytes for name in stored if ".experts." in name and name.endswith("_bias"))
    work = planned(fused)
    written = next(one for one in phases_of(work, [1], last=False) if one.name == "write").host
    assert written["experts together"] == joined_bytes(work.decoder, 1) == live.peak - biases > 0


class WatchedCheckpoint(Checkpoint):
    """A checkpoint that keeps the sizes of what it read into fresh memory."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.sizes: list[int] = []

    def read(self, name: str) -> torch.Tensor:
        return self._seen(super().read(name))

    def read_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        return self._seen(super().read_rows(name, start, stop))

    def _seen(self, tensor: torch.Tensor) -> torch.Tensor:
        self.sizes.append(tensor.nbytes)
        return tensor


def test_experts_are_read_one_at_a_time(fused: Path) -> None:
    """Never is the tensor that holds all of them in memory besides: at most one expert's gate and up."""
    checkpoint = WatchedCheckpoint(fused)
    decoder = Decoder(checkpoint, torch.float32)
    checkpoint.sizes.clear()
    tensors = decoder.read_block(1)
    largest = max(tensor.nbytes for name, tensor in tensors.items() if ".experts." in name)
    assert max(checkpoint.sizes) == 2 * largest
    assert sum(tensor.nbytes for tensor in tensors.values()) == block_bytes(planned(fused).decoder, 1)


def test_dense_blocks_and_models_have_nothing_of_it(bloom: Path, listed: Path) -> None:
    for model in (bloom, listed):
        work = planned(model)
        assert joined_bytes(work.decoder, 0) == expert_weights(work.decoder, 0) == 0
        assert joining_seconds(work.decoder, 0, RATES) == loading_seconds(work.decoder, 0, RATES) == 0
        assert all_tokens_seconds(work, 0, RATES) == 0
        other = replace(RATES, expert_moments=0.01, expert_forward=0.01, copies=1.0)
        before, after = (stage_seconds(work, range(1), True, one, "host", False) for one in (RATES, other))
        assert before == after
        assert all("experts together" not in phase.host for phase in phases_of(work, [0], last=True))
    # A configuration does not tell how experts are stored: those that lie one by one are planned as if in one tensor.
    assert joined_bytes(work.decoder, 1) == 2 * expert_weights(work.decoder, 1) > 0
    assert first_mixture(work.decoder) == 1 and first_mixture(planned(bloom).decoder) == 0


def test_all_tokens_pass_each_starved_expert_once(listed: Path) -> None:
    """The operations of the plan against the calls of the real forward over all tokens."""
    work = planned(listed, expert_tokens=1000.0)
    decoder = Decoder(Checkpoint(listed), torch.float32)
    with torch.inference_mode():
        hidden = torch.randn(2, 24, 32, generator=torch.Generator().manual_seed(0))
        block = decoder.load_block(1, decoder.read_block(1))
        routes, operations = Routes(block, ["en"]), 0
        calls: dict[str, list[int]] = {}
        for name, module in block.named_modules():
            if ".experts." in name and isinstance(module, torch.nn.Linear):
                module.register_forward_hook(
                    lambda one, inputs, _, name=name: calls.setdefault(name, []).append(
                        2 * one.weight.numel() * len(inputs[0])
                    )
                )

        def microbatches() -> list[torch.Tensor]:
            routes.begin(["en", "en"])
            return [hidden, hidden]

        linears = list(decoder.linears(1))
        collect_routed(
            decoder, block, 1, microbatches, Statistic.DIAGONAL, linears, 1000.0, routes, lambda counts: counts
        )
    operations = sum(sum(own) for own in calls.values())
    # Each token is sent to 2 of 8 experts in both forwards; in the second one all experts see all tokens besides.
    routed = 2 * 2 * 2 * expert_weights(work.decoder, 1) / 8 * work.calibration.tokens
    everything = all_tokens_seconds(work, 1, replace(RATES, forward=1.0, expert_forward=1.0))
    assert operations == pytest.approx(routed + everything)
    assert all_tokens_seconds(replace(work, expert_tokens=0.0), 1, RATES) == 0


def test_moments_of_few_tokens_count_for_more(listed: Path) -> None:
    work = planned(listed)
    whole, slower = (moment_operations(work.decoder, 1, 96, share) for share in (1.0, 0.5))
    # 8 experts see a quarter of the tokens each, at inputs of 32 and of 24 columns.
    assert slower - whole == pytest.approx(96 * 8 * (32**2 + 24**2) / 4)


def test_rates_of_experts_are_measured_where_there_are_any(listed: Path, bloom: Path, tmp_path: Path) -> None:
    rates = measure_rates([planned(listed)], RATES, tmp_path, 1)
    taken = (rates.copies, rates.expert_forward, rates.expert_moments)
    assert min(taken) > 0 and all(
        one != getattr(RATES, name)
        for one, name in zip(taken, ("copies", "expert_forward", "expert_moments"), strict=True)
    )
    dense = measure_rates([planned(bloom)], RATES, tmp_path, 1)
    assert (dense.copies, dense.expert_forward, dense.expert_moments) == (1e9, 1.0, 0.4)
