"""Six architectures through the one door: states, scores and moments are those of plain transformers, bit for bit."""

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from mbs_ray.compression.collect import Collected, collect, sequential_groups
from mbs_ray.compression.layer_error import language_sums, weight_changes
from mbs_ray.compression.solve import solve
from mbs_ray.errors import InputError
from mbs_ray.evaluation.scoring import score
from mbs_ray.methods import RTN, SparseGPT, Statistic, Wanda
from mbs_ray.model.assemble import assemble_packed
from mbs_ray.model.checkpoint import Checkpoint
from mbs_ray.model.decoder import Decoder
from mbs_ray.model.packed import IntegerScheme, Schemes
from tests.support.architectures import CONFIGS, SIX, WINDOW, Tensors, bare, rewrite, write_architecture

CPU = torch.device("cpu")
IDS = torch.randint(0, 400, (3, 3 * WINDOW), generator=torch.Generator().manual_seed(1))
WEIGHT = "transformer.h.1.mlp.c_fc.weight"


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("architectures")
    return {name: write_architecture(folder / name, name) for name in CONFIGS}


def assert_equals_plain(folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Input of every block, finished states and logits: no bit differs. Scores: float32 against float64."""
    decoder = Decoder(Checkpoint(folder), dtype)
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    with torch.inference_mode():
        expected = plain(IDS, output_hidden_states=True, use_cache=False)
        hidden = decoder.embed(IDS)
        for index in range(decoder.blocks):
            assert torch.equal(hidden, expected.hidden_states[index]), index
            hidden = decoder.run_block(decoder.load_block(index, decoder.read_block(index)), index, hidden)
        finished = decoder.finish(hidden)
        assert torch.equal(decoder.logits(finished, *decoder.head_rows(0, decoder.vocabulary)), expected.logits)
        (scored,) = score(decoder, [(finished, IDS)])
    nll = -expected.logits[:, :-1].double().log_softmax(-1).gather(-1, IDS[:, 1:, None])[..., 0]
    torch.testing.assert_close(scored.nll.double(), nll, atol=2e-6, rtol=0)


@pytest.mark.parametrize("name", CONFIGS)
def test_all_states_and_logits_are_those_of_the_plain_model(name: str, written: dict[str, Path]) -> None:
    assert_equals_plain(written[name])


@pytest.mark.parametrize("name", SIX)
def test_so_they_are_in_bfloat16(name: str, written: dict[str, Path]) -> None:
    assert_equals_plain(written[name], torch.bfloat16)


@pytest.mark.parametrize("name", ["gemma3", "qwen3-untied"])
def test_the_window_of_these_models_matters_at_this_length(name: str, written: dict[str, Path]) -> None:
    sliding = AutoModelForCausalLM.from_pretrained(written[name], dtype=torch.float32)
    config = copy.deepcopy(sliding.config)
    config.sliding_window = 128
    wide = AutoModelForCausalLM.from_pretrained(written[name], config=config, dtype=torch.float32)
    with torch.no_grad():
        differs = (sliding(IDS).logits != wide(IDS).logits).any(dim=-1).all(dim=0)
    assert not differs[:WINDOW].any() and differs[WINDOW:].all()


@pytest.mark.parametrize("name", ["gpt2", "xglm", "opt-post-norm"])
def test_bare_names_as_the_hub_has_them_are_found_and_kept(name: str, written: dict[str, Path], tmp_path: Path) -> None:
    def as_on_the_hub(tensors: Tensors) -> Tensors:
        # The hub's GPT-2 holds its causal masks as well.
        masks = {f"h.{index}.attn.bias": torch.ones(1, 1, 4, 4).tril() for index in range(3)} if name == "gpt2" else {}
        return bare(tensors) | masks

    folder = rewrite(write_architecture(tmp_path / name, name), as_on_the_hub)
    assert_equals_plain(folder)
    decoder, stored = Decoder(Checkpoint(folder), torch.float32), load_file(folder / "model.safetensors")
    assert not any(tensor.startswith(("transformer.", "model.")) for tensor in stored)
    assert_given_back(decoder, stored)


@pytest.mark.parametrize("name", SIX)
def test_what_no_method_touched_is_given_back_bit_for_bit(name: str, written: dict[str, Path]) -> None:
    decoder = Decoder(Checkpoint(written[name]), torch.float32)
    assert_given_back(decoder, load_file(written[name] / "model.safetensors"))


def assert_given_back(decoder: Decoder, stored: Tensors) -> None:
    given: Tensors = {}
    for index in range(decoder.blocks):
        block = decoder.read_block(index)
        for linear, shape in decoder.linears(index).items():
            assert block[f"{linear}.weight"].shape == shape
        given |= decoder.to_stored(index, block)
    assert given.keys() | set(decoder.outside_tensors()) == stored.keys()
    for tensor, value in given.items():
        assert value.dtype == stored[tensor].dtype and torch.equal(value, stored[tensor]), tensor


def inputs_and_outputs(folder: Path, prefix: str) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """What goes into and comes out of each linear of the plain model below ``prefix``, in float64."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    seen = {}
    for name, module in model.named_modules():
        if name.startswith(prefix) and isinstance(module, torch.nn.Linear | Conv1D):

            def record(
                _: object, inputs: tuple, output: torch.Tensor, name: str = name, module: object = module
            ) -> None:
                bias = 0 if module.bias is None else module.bias
                flat = (one.double().flatten(0, -2) for one in (inputs[0], output - bias))
                seen[name.removeprefix(prefix)] = tuple(flat)

            module.register_forward_hook(record)
    with torch.no_grad():
        model(IDS, use_cache=False)
    return seen


BLOCKS = {"gpt2": "transformer.h", "opt-post-norm": "model.decoder.layers"}


@pytest.mark.parametrize("name", SIX)
@pytest.mark.parametrize("index", [0, 2])
def test_moments_are_those_at_the_inputs_of_the_plain_models_linears(
    name: str, index: int, written: dict[str, Path]
) -> None:
    reference = inputs_and_outputs(written[name], f"{BLOCKS.get(name, 'model.layers')}.{index}.")
    decoder = Decoder(Checkpoint(written[name]), torch.float32)
    with torch.inference_mode():
        hidden = decoder.embed(IDS)
        for before in range(index):
            hidden = decoder.run_block(decoder.load_block(before, decoder.read_block(before)), before, hidden)
        block = decoder.load_block(index, decoder.read_block(index))
        collected = collect(decoder, block, index, hidden.split(2), Statistic.FULL)
    assert collected.moments.keys() == reference.keys() == decoder.linears(index).keys()
    for linear, (inputs, outputs) in reference.items():
        assert (outputs.shape[1], inputs.shape[1]) == decoder.linears(index)[linear]
        expected = inputs.T @ inputs
        scale = float(expected.abs().max())
        torch.testing.assert_close(collected.moments[linear].sum.double() / scale, expected / scale, atol=1e-5, rtol=0)
        assert collected.moments[linear].tokens == IDS.numel()
        assert float(collected.energies[linear]) == pytest.approx(float(outputs.square().sum()), rel=1e-4)


def test_the_rows_of_a_conv1d_are_what_it_gives(written: dict[str, Path]) -> None:
    """Wanda keeps the same number in every row, by |w| times the norm of the input: easily told from columns."""
    inputs, _ = inputs_and_outputs(written["gpt2"], "transformer.h.0.")["mlp.c_fc"]
    decoder = Decoder(Checkpoint(written["gpt2"]), torch.float32)
    tensors = decoder.read_block(0)
    with torch.inference_mode():
        given = collect(decoder, decoder.load_block(0, tensors), 0, [decoder.embed(IDS)], Statistic.DIAGONAL)
    solved = solve(tensors, list(decoder.linears(0)), given, Wanda(sparsity=0.5), CPU, "block 0")
    stored = decoder.to_stored(0, tensors | solved.weights)["transformer.h.0.mlp.c_fc.weight"]
    dense = load_file(written["gpt2"] / "model.safetensors")["transformer.h.0.mlp.c_fc.weight"]
    assert stored.shape == dense.shape == (32, 128) and stored.dtype == dense.dtype
    saliency = dense.double().abs() * inputs.square().sum(0).sqrt()[:, None]
    kept = torch.zeros_like(dense, dtype=torch.bool).scatter(0, saliency.topk(16, dim=0).indices, True)
    assert torch.equal(stored, dense * kept)


def test_a_block_loaded_from_compressed_conv1ds_computes_with_them(written: dict[str, Path], tmp_path: Path) -> None:
    decoder = Decoder(Checkpoint(written["gpt2"]), torch.float32)
    tensors = decoder.read_block(0)
    with torch.inference_mode():
        hidden = decoder.embed(IDS)
        given = collect(decoder, decoder.load_block(0, tensors), 0, [hidden], Statistic.FULL)
        tensors |= solve(tensors, list(decoder.linears(0)), given, SparseGPT(sparsity=0.5), CPU, "block 0").weights
        after = decoder.run_block(decoder.load_block(0, tensors), 0, hidden)
    folder = write_architecture(tmp_path / "gpt2", "gpt2")
    rewrite(folder, lambda stored: stored | decoder.to_stored(0, tensors))
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        expected = plain(IDS, output_hidden_states=True, use_cache=False).hidden_states
    assert torch.equal(after, expected[1]) and not torch.equal(after, hidden)


def test_conv1ds_are_measured_by_language_and_taken_in_turn(written: dict[str, Path]) -> None:
    decoder = Decoder(Checkpoint(written["gpt2"]), torch.float32)
    tensors, linears = decoder.read_block(0), list(decoder.linears(0))
    inputs = inputs_and_outputs(written["gpt2"], "transformer.h.0.")
    with torch.inference_mode():
        hidden = decoder.embed(IDS)
        block = decoder.load_block(0, tensors)
        assert (
            sequential_groups(decoder, block, 0, hidden) == [[name] for name in inputs] == [[name] for name in linears]
        )
        after = {f"{name}.weight": tensors[f"{name}.weight"] * 0.5 for name in linears}
        changes = weight_changes(decoder, linears, tensors, after)
        spoken = [(("en", "sw", "en"), hidden)]
        sums = language_sums(decoder, block, 0, spoken, changes, ["en", "sw"])
    stored = load_file(written["gpt2"] / "model.safetensors")
    for column, name in enumerate(linears):
        lost = inputs[name][0] @ stored[f"transformer.h.0.{name}.weight"].double() * 0.5
        by_segment = lost.square().sum(1).view(3, -1).sum(1)
        expected = [float(by_segment[0] + by_segment[2]), float(by_segment[1])]
        assert sums[:, column, 0].tolist() == pytest.approx(expected, rel=1e-4)
        assert sums[:, column, 1].tolist() == pytest.approx([4 * one for one in expected], rel=1e-4)


def test_a_conv1d_is_not_exported_packed(written: dict[str, Path], tmp_path: Path) -> None:
    decoder = Decoder(Checkpoint(written["gpt2"]), torch.float32)
    scheme = IntegerScheme.of({"bits": 4, "group_size": 16, "symmetric": True})
    assert scheme is not None
    with pytest.raises(InputError, match=r"block 0 attn\.c_attn: a Conv1D, .* export plain safetensors"):
        assemble_packed(decoder, tmp_path, Schemes(scheme), tmp_path / "export", "")
    assert not (tmp_path / "export").exists()
    solved = solve(decoder.read_block(0), ["attn.c_attn"], Collected(), RTN(bits=4), CPU, "block 0")
    assert solved.weights["attn.c_attn.weight"].shape == (96, 32)


def test_a_tied_head_that_the_checkpoint_holds_as_well_has_the_last_word(
    written: dict[str, Path], tmp_path: Path
) -> None:
    """As in transformers, which does not tie what differs."""
    folder = write_architecture(tmp_path / "opt", "opt")
    embedding = "model.decoder.embed_tokens.weight"
    rewrite(folder, lambda tensors: tensors | {"lm_head.weight": tensors[embedding].flip(0)})
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"]
    assert_equals_plain(folder)


def test_a_tied_embedding_may_be_stored_as_the_head_alone(tmp_path: Path) -> None:
    folder = write_architecture(tmp_path / "llama", "llama")

    def renamed(tensors: Tensors) -> Tensors:
        return {"lm_head.weight" if "embed" in name else name: tensor for name, tensor in tensors.items()}

    assert_equals_plain(rewrite(folder, renamed))


def test_a_weight_of_another_shape_than_the_configuration_says_is_named(tmp_path: Path) -> None:
    folder = write_architecture(tmp_path / "gpt2", "gpt2")
    rewrite(folder, lambda tensors: tensors | {WEIGHT: tensors[WEIGHT].t().contiguous()})
    message = r"transformer\.h\.1\.mlp\.c_fc\.weight is \[128, 32\], the configuration says \[32, 128\]"
    with pytest.raises(InputError, match=message):
        Decoder(Checkpoint(folder), torch.float32)
