"""One block against the plain model: moments at every linear's input, solved weights, reports."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from mbs_ray.compression.collect import Collected, collect, sequential_groups
from mbs_ray.compression.layer_error import language_sums, layer_errors, weight_changes
from mbs_ray.compression.solve import solve
from mbs_ray.errors import InputError
from mbs_ray.methods import RTN, HessianFactor, Magnitude, Moment, SparseGPT, Statistic, Wanda, output_error
from mbs_ray.model.checkpoint import Checkpoint
from mbs_ray.model.decoder import Decoder
from mbs_ray.model.packed import IntegerScheme, pack_linear

CPU = torch.device("cpu")


def token_ids(rows: int, length: int = 16) -> torch.Tensor:
    return torch.randint(0, 400, (rows, length), generator=torch.Generator().manual_seed(5))


def inputs_in_the_plain_model(folder: Path, ids: torch.Tensor, prefix: str) -> dict[str, torch.Tensor]:
    """Inputs of all linears below ``prefix``, by hooks on the whole model, in float64."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    seen: dict[str, torch.Tensor] = {}
    names = {module: name for name, module in model.named_modules()}

    def record(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        seen[names[module].removeprefix(prefix)] = inputs[0].double().flatten(0, -2)

    for module, name in names.items():
        if name.startswith(prefix) and isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(record)
    with torch.no_grad():
        model(ids)
    return seen


def collected(folder: Path, index: int, ids: torch.Tensor, statistic: Statistic, rows: int) -> Collected:
    decoder = Decoder(Checkpoint(folder), torch.float32)
    with torch.inference_mode():
        hidden = decoder.embed(ids)
        for before in range(index):
            hidden = decoder.run_block(decoder.load_block(before, decoder.read_block(before)), before, hidden)
        block = decoder.load_block(index, decoder.read_block(index))
        return collect(decoder, block, index, hidden.split(rows), statistic)


@pytest.mark.parametrize(("layout", "prefix"), [("bloom", "transformer.h.2."), ("llama", "model.layers.2.")])
def test_moments_are_the_sums_of_outer_products_of_every_linears_inputs(
    layout: str, prefix: str, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(layout)
    ids = token_ids(5)
    reference = inputs_in_the_plain_model(folder, ids, prefix)
    of_full = collected(folder, 2, ids, Statistic.FULL, rows=2)
    full, diagonal = of_full.moments, collected(folder, 2, ids, Statistic.DIAGONAL, rows=5).moments
    assert full.keys() == diagonal.keys() == reference.keys()
    for name, inputs in reference.items():
        expected = inputs.T @ inputs
        scale = float(expected.abs().max())
        assert full[name].tokens == diagonal[name].tokens == 5 * 16
        torch.testing.assert_close(full[name].sum.double() / scale, expected / scale, atol=1e-5, rtol=0)
        torch.testing.assert_close(diagonal[name].sum.double() / scale, expected.diagonal() / scale, atol=1e-5, rtol=0)
        weight = Checkpoint(folder).read(f"{prefix}{name}.weight").double()
        energy = float((inputs @ weight.T).square().sum())
        assert float(of_full.energies[name]) == pytest.approx(energy, rel=1e-4)


@pytest.mark.parametrize(
    ("linears", "calls"),
    [
        (None, {"self_attn.o_proj": 4, "mlp.up_proj": 4, "mlp.down_proj": 1}),
        ({"self_attn.q_proj", "self_attn.k_proj"}, {"self_attn.k_proj": 1, "self_attn.v_proj": 1, "mlp.up_proj": 1}),
    ],
    ids=["all", "some"],
)
def test_forwards_after_the_first_end_at_the_last_input_that_is_asked_for(
    linears: set[str] | None, calls: dict[str, int], llama: Path
) -> None:
    decoder = Decoder(Checkpoint(llama), torch.float32)
    with torch.inference_mode():
        parts = decoder.embed(token_ids(4)).split(1)
        block = decoder.load_block(0, decoder.read_block(0))
        counts = dict.fromkeys(calls, 0)

        def count(name: str) -> None:
            counts[name] += 1

        for name in calls:
            block.get_submodule(name).register_forward_hook(lambda *_, name=name: count(name))
        found = collect(decoder, block, 0, parts, Statistic.FULL, linears)
        assert counts == calls
        whole = collect(decoder, block, 0, [torch.cat(parts)], Statistic.FULL, linears)
    assert found.moments.keys() == whole.moments.keys() == (linears or decoder.linears(0).keys())
    for name, moment in whole.moments.items():
        torch.testing.assert_close(found.moments[name].sum, moment.sum, atol=1e-3, rtol=1e-4)
        assert found.moments[name].tokens == moment.tokens == 4 * 16
        assert float(found.energies[name]) == pytest.approx(float(whole.energies[name]), rel=1e-4)
    assert not any(collect(decoder, block, 0, parts, Statistic.DIAGONAL, linears).energies.values())


def test_a_block_that_calls_its_linears_in_another_order_for_other_segments_is_refused_by_name(llama: Path) -> None:
    class Wayward(torch.nn.Module):
        def __init__(self, own: torch.nn.Module) -> None:
            super().__init__()
            self.mlp, self.turned = own.get_submodule("mlp"), False

        def forward(self, hidden: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
            gate, up = self.mlp.get_submodule("gate_proj"), self.mlp.get_submodule("up_proj")
            first, second = (up, gate) if self.turned else (gate, up)
            self.turned = True
            return first(hidden) + second(hidden)

    decoder = Decoder(Checkpoint(llama), torch.float32)
    with torch.inference_mode():
        parts = decoder.embed(token_ids(2)).split(1)
        block = Wayward(decoder.load_block(0, decoder.read_block(0)))
        with pytest.raises(InputError, match=r"mlp\.up_proj: the block calls its linears in another order"):
            collect(decoder, block, 0, parts, Statistic.FULL)


def test_linears_with_the_same_input_share_one_moment(llama: Path) -> None:
    moments = collected(llama, 0, token_ids(3), Statistic.FULL, rows=1).moments
    assert moments["self_attn.q_proj"] is moments["self_attn.k_proj"] is moments["self_attn.v_proj"]
    assert moments["mlp.gate_proj"] is moments["mlp.up_proj"]
    assert len({id(moment) for moment in moments.values()}) == 4
    assert moments["self_attn.q_proj"].tokens == 3 * 16


def test_a_method_without_statistic_runs_no_forward(bloom: Path) -> None:
    decoder = Decoder(Checkpoint(bloom), torch.float32)

    def never() -> object:
        raise AssertionError("a microbatch was asked for")
        yield

    assert collect(decoder, torch.nn.Identity(), 0, never(), Statistic.NONE) == Collected()


def test_solving_replaces_the_linears_alone_and_reports_each(bloom: Path) -> None:
    decoder = Decoder(Checkpoint(bloom), torch.float32)
    tensors = decoder.read_block(1)
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    given = collected(bloom, 1, token_ids(6), Statistic.FULL, rows=3)
    kept = dict(given.moments)
    solved = solve(tensors, list(decoder.linears(1)), given, SparseGPT(sparsity=0.5), CPU, "block 1")
    weights, reports = solved.weights, solved.reports
    assert given.moments == {} and solved.packed == {}
    assert [report.name for report in reports] == list(decoder.linears(1))
    for report in reports:
        weight = weights[f"{report.name}.weight"]
        expected = SparseGPT(sparsity=0.5).compress(before[f"{report.name}.weight"], kept[report.name])
        assert torch.equal(weight, expected.weight)
        assert weight.dtype == torch.bfloat16
        assert int((weight == 0).sum()) == weight.numel() // 2
        assert report.loss == expected.loss and report.tokens == 6 * 16
        _, relative = output_error(before[f"{report.name}.weight"], weight, kept[report.name])
        assert report.relative_loss == pytest.approx(relative, rel=1e-2)
    assert all(torch.equal(tensors[name], before[name]) for name in before)


def test_what_is_quantized_is_given_packed_as_well(bloom: Path) -> None:
    decoder = Decoder(Checkpoint(bloom), torch.float32)
    tensors = decoder.read_block(1)
    method = RTN(bits=4, group_size=16)
    solved = solve(tensors, list(decoder.linears(1)), Collected(), method, CPU, "block 1")
    weights, packed = solved.weights, solved.packed
    assert packed.keys() == weights.keys() == {f"{name}.weight" for name in decoder.linears(1)}
    for name, parts in packed.items():
        result = method.compress(tensors[name], None)
        expected = pack_linear(
            result.codes, result.scales, result.zeros, IntegerScheme(bits=4, group_size=16, symmetric=False)
        )
        assert parts.keys() == expected.keys()
        assert all(torch.equal(parts[part], expected[part]) for part in parts)


def test_a_linear_that_was_never_called_is_named(bloom: Path) -> None:
    decoder = Decoder(Checkpoint(bloom), torch.float32)
    given = collected(bloom, 0, token_ids(2), Statistic.DIAGONAL, rows=2)
    del given.moments["mlp.dense_4h_to_h"]
    linears = list(decoder.linears(0))
    with pytest.raises(InputError, match=r"block 0 mlp\.dense_4h_to_h: .*never called"):
        solve(decoder.read_block(0), linears, given, Wanda(sparsity=0.5), CPU, "block 0")
    solve(decoder.read_block(0), linears, Collected(), Magnitude(sparsity=0.5), CPU, "block 0")


def test_linears_that_share_an_input_share_one_factor_and_the_largest_input_is_solved_first(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = Decoder(Checkpoint(llama), torch.float32)
    given = collected(llama, 0, token_ids(6), Statistic.FULL, rows=3)
    columns = []
    prepare = SparseGPT.prepare

    def counted(self: SparseGPT, moment: Moment, name: str) -> HessianFactor:
        columns.append(moment.columns)
        return prepare(self, moment, name)

    monkeypatch.setattr(SparseGPT, "prepare", counted)
    solve(decoder.read_block(0), list(decoder.linears(0)), given, SparseGPT(), CPU, "block 0")
    assert columns == sorted(columns, reverse=True)
    assert len(columns) == 4


def test_the_turns_of_a_block_follow_its_forward(llama: Path) -> None:
    decoder = Decoder(Checkpoint(llama), torch.float32)
    with torch.inference_mode():
        hidden = decoder.embed(token_ids(1))
        order = sequential_groups(decoder, decoder.load_block(0, decoder.read_block(0)), 0, hidden)
    assert [[name.split(".")[1] for name in turn] for turn in order] == [
        ["q_proj", "k_proj", "v_proj"],
        ["o_proj"],
        ["gate_proj", "up_proj"],
        ["down_proj"],
    ]


SPOKEN = ("en", "en", "en", "sw", "sw", "hi")


def sums_of(folder: Path, index: int, ids: torch.Tensor, rows: int) -> tuple[torch.Tensor, Collected, list[float]]:
    """What each language of SPOKEN loses, moments of the same tokens, and the losses that the method reports."""
    decoder = Decoder(Checkpoint(folder), torch.float32)
    given = collected(folder, index, ids, Statistic.FULL, rows)
    kept = Collected(dict(given.moments), given.energies)
    tensors, linears = decoder.read_block(index), list(decoder.linears(index))
    solved = solve(tensors, linears, given, SparseGPT(sparsity=0.5), CPU, "block")
    with torch.inference_mode():
        hidden = decoder.embed(ids)
        for before in range(index):
            hidden = decoder.run_block(decoder.load_block(before, decoder.read_block(before)), before, hidden)
        spoken = [SPOKEN[start : start + rows] for start in range(0, len(SPOKEN), rows)]
        sums = language_sums(
            decoder,
            decoder.load_block(index, tensors),
            index,
            zip(spoken, hidden.split(rows), strict=True),
            weight_changes(decoder, linears, tensors, solved.weights),
            ("en", "sw", "hi", "yo"),
        )
    return sums, kept, [report.loss or 0.0 for report in solved.reports]


@pytest.mark.parametrize(("layout", "prefix"), [("bloom", "transformer.h.1."), ("llama", "model.layers.1.")])
def test_what_a_language_loses_is_the_sum_over_its_tokens_wherever_microbatches_are_cut(
    layout: str, prefix: str, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(layout)
    ids = token_ids(6)
    inputs = inputs_in_the_plain_model(folder, ids, prefix)
    decoder = Decoder(Checkpoint(folder), torch.float32)
    linears = list(decoder.linears(1))
    dense = decoder.read_block(1)
    given = collected(folder, 1, ids, Statistic.FULL, rows=6)
    after = solve(dense, linears, given, SparseGPT(sparsity=0.5), CPU, "block 1").weights
    for rows in (6, 4, 1):
        sums, _, _ = sums_of(folder, 1, ids, rows)
        assert sums.shape == (4, len(linears), 2) and sums.dtype == torch.float64
        assert not sums[3].any()
        for row, language in enumerate(("en", "sw", "hi")):
            of_language = torch.tensor([one == language for one in SPOKEN]).repeat_interleave(16)
            for column, name in enumerate(linears):
                tokens, weight = inputs[name][of_language], dense[f"{name}.weight"].double()
                change = after[f"{name}.weight"].double() - weight
                # Solved anew for other microbatches, a float32 solver may put a weight a bit elsewhere.
                assert float(sums[row, column, 0]) == pytest.approx(float((tokens @ change.T).square().sum()), rel=1e-3)
                assert float(sums[row, column, 1]) == pytest.approx(float((tokens @ weight.T).square().sum()), rel=1e-4)


def test_what_all_languages_lose_is_the_loss_that_the_method_reports(bloom: Path) -> None:
    ids = token_ids(6)
    sums, kept, losses = sums_of(bloom, 2, ids, rows=4)
    # loss = tr(ΔW H ΔWᵀ) with H = 2/tokens Σ x xᵀ.
    assert (sums[..., 0].sum(0) * 2 / (6 * 16)).tolist() == pytest.approx(losses, rel=1e-4)
    assert sums[..., 1].sum(0).tolist() == pytest.approx([float(one) for one in kept.energies.values()], rel=1e-5)


def test_a_linear_that_is_never_called_has_no_layer_error() -> None:
    sums = torch.zeros(2, 2, 2, dtype=torch.float64)
    sums[:, 1] = torch.tensor([[1.0, 4.0], [0.0, 3.0]])
    errors = layer_errors(sums, ["en", "sw"], ["unused", "dense"])
    assert [(one.language, one.linear, one.relative) for one in errors] == [("en", "dense", 0.25), ("sw", "dense", 0.0)]


class _Expert(torch.nn.Module):
    """Gives its linear every second token."""

    def __init__(self, linear: torch.nn.Module) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.linear(inputs[:, ::2]).repeat_interleave(2, 1)


def test_a_linear_that_sees_some_tokens_only_is_refused_by_name(bloom: Path) -> None:
    decoder = Decoder(Checkpoint(bloom), torch.float32)
    block = decoder.load_block(0, decoder.read_block(0))
    block.mlp.dense_h_to_4h = _Expert(block.mlp.dense_h_to_4h)
    changes = {"mlp.dense_h_to_4h.linear": torch.zeros(128, 32)}
    with torch.inference_mode(), pytest.raises(InputError, match=r"block 0 mlp\.dense_h_to_4h\.linear .* 16 of 32"):
        language_sums(decoder, block, 0, [(("en", "sw"), decoder.embed(token_ids(2)))], changes, ["en", "sw"])
