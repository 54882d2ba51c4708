"""Moments of every expert against float64 hooks on the plain model; what starved experts borrow; counts of tokens."""

import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mbs_ray.compression.collect import Collected, sequential_groups
from mbs_ray.compression.layer_error import language_sums, weight_changes
from mbs_ray.compression.routing import borrow, collect_routed, least_tokens, mixture_reports
from mbs_ray.methods import Moment, Statistic
from mbs_ray.model.checkpoint import Checkpoint
from mbs_ray.model.decoder import Decoder
from mbs_ray.model.routes import Routes
from tests.support.mixtures import MIXTURES, load_plain, write_translated

IDS = torch.randint(0, 390, (4, 24), generator=torch.Generator().manual_seed(1))
SPOKEN = ("en", "en", "sw", "hi")
LANGUAGES = ["en", "sw", "hi"]
BLOCK = 1


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("mixtures")
    return {name: write_translated(folder / name, name) for name in MIXTURES}


class Plain:
    """What the experts of one block of the plain model see, in float64, worked out from the router's choice."""

    def __init__(self, folder: Path, name: str) -> None:
        model = load_plain(folder, name)
        layer = model.model.layers[BLOCK]
        self.path, experts = next((path, one) for path, one in layer.named_modules() if path.endswith("experts"))
        seen: list[tuple[torch.Tensor, ...]] = []
        experts.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(one.clone() for one in inputs)))
        with torch.no_grad():
            model(input_ids=IDS, use_cache=False)
        ((hidden, *routed),) = seen
        self.experts = experts.double()
        self.hidden = hidden.reshape(-1, hidden.shape[-1]).double()
        self.index = next(one for one in routed if not one.is_floating_point())

    def inputs(self, number: int, everything: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs of gate and up, and of down, [tokens, columns]: of the tokens sent to this expert, or of all."""
        rows = self.hidden if everything else self.hidden[(self.index == number).any(-1)]
        weight = self.experts.gate_up_proj[number]
        both = rows @ (weight if self.experts.is_transposed else weight.T)
        if self.experts.has_bias:
            both = both + self.experts.gate_up_proj_bias[number]
        return rows, self.experts._apply_gate(both).detach()


def collected_of(
    folder: Path, statistic: Statistic = Statistic.FULL, expert_tokens: float = 0.0, sizes: int = 2
) -> tuple[Decoder, Collected, Routes]:
    decoder = Decoder(Checkpoint(folder), torch.float32)
    with torch.inference_mode():
        hidden = decoder.embed(IDS)
        for before in range(BLOCK):
            hidden = decoder.run_block(decoder.load_block(before, decoder.read_block(before)), before, hidden)
        block = decoder.load_block(BLOCK, decoder.read_block(BLOCK))
        routes = Routes(block, LANGUAGES)

        def microbatches() -> Iterable[torch.Tensor]:
            for start in range(0, len(hidden), sizes):
                routes.begin(SPOKEN[start : start + sizes])
                yield hidden[start : start + sizes]

        linears = list(decoder.linears(BLOCK))
        collected = collect_routed(
            decoder, block, BLOCK, microbatches, statistic, linears, expert_tokens, routes, lambda counts: counts
        )
    return decoder, collected, routes


def assert_moment(moment: Moment, inputs: torch.Tensor) -> None:
    expected = inputs.T @ inputs
    scale = max(float(expected.abs().max()), 1e-9)
    torch.testing.assert_close(moment.sum.double() / scale, expected / scale, atol=1e-5, rtol=0)
    assert moment.tokens == len(inputs)


@pytest.mark.parametrize("name", MIXTURES)
def test_moments_of_every_expert_are_those_of_the_tokens_sent_to_it(name: str, written: dict[str, Path]) -> None:
    plain = Plain(written[name], name)
    decoder, collected, _ = collected_of(written[name])
    assert collected.moments.keys() == decoder.linears(BLOCK).keys()
    for number in range(decoder.mixtures(BLOCK)[plain.path]):
        outer, inner = plain.inputs(number)
        prefix = f"{plain.path}.{number}."
        if len(outer):
            assert collected.moments[f"{prefix}gate_proj"] is collected.moments[f"{prefix}up_proj"]
            assert_moment(collected.moments[f"{prefix}gate_proj"], outer)
            assert_moment(collected.moments[f"{prefix}down_proj"], inner)
            weight = decoder.read_block(BLOCK)[f"{prefix}down_proj.weight"].double()
            energy = float((inner @ weight.T).square().sum())
            assert float(collected.energies[f"{prefix}down_proj"]) == pytest.approx(energy, rel=1e-4)


@pytest.mark.parametrize("name", ["qwen3-moe", "deepseek-v3", "gpt-oss"])
@pytest.mark.parametrize("statistic", [Statistic.FULL, Statistic.DIAGONAL])
def test_starved_experts_borrow_what_they_lack_from_all_tokens(
    name: str, statistic: Statistic, written: dict[str, Path]
) -> None:
    """Every expert is starved here: M_own + (least − tokens) · M_all / tokens_all, with tokens to match."""
    plain = Plain(written[name], name)
    decoder, collected, _ = collected_of(written[name], statistic, expert_tokens=4.0)
    borrowed = borrow(collected)
    stored = decoder.read_block(BLOCK)
    for number in range(decoder.mixtures(BLOCK)[plain.path]):
        own, everything = plain.inputs(number), plain.inputs(number, everything=True)
        for part, kinds in enumerate((("gate_proj", "up_proj"), ("down_proj",))):
            columns = own[part].shape[1]
            least, missing = 4 * columns, 4 * columns - len(own[part])
            expected = own[part].T @ own[part] + missing / IDS.numel() * everything[part].T @ everything[part]
            expected = expected if statistic is Statistic.FULL else expected.diagonal()
            for kind in kinds:
                linear = f"{plain.path}.{number}.{kind}"
                moment = collected.moments[linear]
                scale = float(expected.abs().max())
                torch.testing.assert_close(moment.sum.double() / scale, expected / scale, atol=2e-5, rtol=0)
                assert moment.tokens == least
                assert borrowed[linear] == pytest.approx(missing / least)
                weight = stored[f"{linear}.weight"].double()
                lost = sum(
                    factor * float((inputs @ weight.T).square().sum())
                    for factor, inputs in ((1, own[part]), (missing / IDS.numel(), everything[part]))
                )
                expected_energy = lost if statistic is Statistic.FULL else 0
                assert float(collected.energies[linear]) == pytest.approx(expected_energy, rel=1e-4)
    shared = [linear for linear in decoder.linears(BLOCK) if not linear.startswith(f"{plain.path}.")]
    assert not borrowed.keys() & set(shared)


def test_an_expert_without_any_token_has_the_moment_of_all_even_where_nothing_else_is_shrunk(
    written: dict[str, Path], tmp_path: Path
) -> None:
    """The router of this copy never takes expert 2."""
    from tests.support.architectures import rewrite

    folder = write_translated(tmp_path / "deepseek-v3", "deepseek-v3")
    bias = "model.layers.1.mlp.gate.e_score_correction_bias"
    rewrite(folder, lambda tensors: tensors | {bias: tensors[bias] - 100 * torch.eye(8, dtype=tensors[bias].dtype)[2]})
    plain = Plain(folder, "deepseek-v3")
    assert not (plain.index == 2).any()
    _, collected, routes = collected_of(folder, expert_tokens=0.0)
    assert set(collected.least) >= {f"mlp.experts.2.{kind}_proj" for kind in ("gate", "up", "down")}
    borrowed = borrow(collected)
    _, everything = plain.inputs(2, everything=True)
    expected = everything.T @ everything / IDS.numel()
    moment = collected.moments["mlp.experts.2.down_proj"]
    torch.testing.assert_close(moment.sum.double(), expected, atol=1e-4 * float(expected.abs().max()), rtol=0)
    assert moment.tokens == 1 and borrowed["mlp.experts.2.down_proj"] == 1
    (report,) = mixture_reports(routes, borrowed, lambda counts: counts)
    assert report.borrowed[2] == 1 and [row[2] for row in report.tokens] == [0, 0, 0]


@pytest.mark.parametrize("name", MIXTURES)
@pytest.mark.parametrize("sizes", [1, 3, 4])
def test_tokens_are_counted_by_language_and_expert(name: str, sizes: int, written: dict[str, Path]) -> None:
    plain = Plain(written[name], name)
    _, collected, routes = collected_of(written[name], sizes=sizes)
    chosen = plain.index.view(len(SPOKEN), -1)
    (report,) = mixture_reports(routes, {}, lambda counts: counts)
    assert report.mixture == plain.path and report.languages == LANGUAGES
    for row, language in zip(report.tokens, LANGUAGES, strict=True):
        own = torch.cat([one for one, spoken in zip(chosen, SPOKEN, strict=True) if spoken == language])
        assert row == torch.bincount(own, minlength=len(row)).tolist()
    for number, tokens in enumerate(zip(*report.tokens, strict=True)):
        if sum(tokens):
            assert collected.moments[f"{plain.path}.{number}.up_proj"].tokens == sum(tokens)


def test_counts_keep_no_weights_alive(written: dict[str, Path]) -> None:
    decoder = Decoder(Checkpoint(written["qwen3-moe"]), torch.float32)
    block = decoder.load_block(0, decoder.read_block(0))
    weights = [weakref.ref(parameter) for parameter in block.parameters()]
    routes = Routes(block, LANGUAGES)
    routes.begin(SPOKEN)
    with torch.inference_mode(), routes.counting(block):
        decoder.run_block(block, 0, decoder.embed(IDS))
    del block
    assert len(weights) > 12 and [one() for one in weights if one() is not None] == []
    assert int(routes.tokens["mlp.experts"].sum()) == 2 * IDS.numel()


def test_errors_keep_the_language_of_a_token_through_the_router(written: dict[str, Path]) -> None:
    plain = Plain(written["qwen3-moe"], "qwen3-moe")
    decoder = Decoder(Checkpoint(written["qwen3-moe"]), torch.float32)
    tensors = decoder.read_block(BLOCK)
    after = {f"{name}.weight": tensors[f"{name}.weight"] * 0.5 for name in decoder.linears(BLOCK)}
    linears = list(decoder.linears(BLOCK))
    with torch.inference_mode():
        hidden = decoder.run_block(decoder.load_block(0, decoder.read_block(0)), 0, decoder.embed(IDS))
        block = decoder.load_block(BLOCK, tensors)
        changes = weight_changes(decoder, linears, tensors, after)
        parts = [(SPOKEN[:3], hidden[:3]), (SPOKEN[3:], hidden[3:])]
        sums = language_sums(decoder, block, BLOCK, parts, changes, LANGUAGES)
    segment_of = torch.arange(IDS.numel()) // IDS.shape[1]
    for number in range(4):
        rows = (plain.index == number).any(-1).nonzero().flatten()
        _, inner = plain.inputs(number)
        linear = f"{plain.path}.{number}.down_proj"
        lost = (inner @ tensors[f"{linear}.weight"].double().T * 0.5).square().sum(1)
        for row, language in enumerate(LANGUAGES):
            own = [SPOKEN[int(segment)] == language for segment in segment_of[rows]]
            expected = float(lost[torch.tensor(own, dtype=torch.bool)].sum())
            assert float(sums[row, linears.index(linear), 0]) == pytest.approx(expected, rel=1e-4, abs=1e-9)


def test_in_a_true_sequence_the_experts_are_two_groups(written: dict[str, Path]) -> None:
    """Even those that the first microbatch never reaches."""
    decoder = Decoder(Checkpoint(written["deepseek-v3"]), torch.float32)
    block = decoder.load_block(BLOCK, decoder.read_block(BLOCK))
    with torch.inference_mode():
        groups = sequential_groups(decoder, block, BLOCK, decoder.embed(IDS[:1, :2]))
    routed = [group for group in groups if any(".experts." in name for name in group)]
    assert sorted(name for group in groups for name in group) == sorted(decoder.linears(BLOCK))
    outer, inner = routed
    assert set(outer) == {f"mlp.experts.{number}.{kind}_proj" for number in range(8) for kind in ("gate", "up")}
    assert set(inner) == {f"mlp.experts.{number}.down_proj" for number in range(8)}


@given(columns=st.integers(1, 5000), factor=st.floats(0, 10))
def test_least_tokens(columns: int, factor: float) -> None:
    least: Any = least_tokens(columns, factor)
    assert (least >= 1 and least >= factor * columns > least - 2) or least == 1
