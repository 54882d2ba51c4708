"""What is collected of two models at once, against hooks on plain transformers; and which linears write the stream."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, FalconConfig

from mbs_ray.compression.collect import collect
from mbs_ray.compression.collect_drift import Pair, collect_with_drift, held_out, residual_writers
from mbs_ray.methods import Statistic
from mbs_ray.model.checkpoint import Checkpoint
from mbs_ray.model.decoder import Decoder
from tests.support.architectures import CONFIGS, write_architecture

LENGTH = 12
SEGMENTS = 10
WRITERS = {
    "gpt2": ["attn.c_proj", "mlp.c_proj"],
    "xglm": ["self_attn.out_proj", "fc2"],
    "opt": ["self_attn.out_proj", "fc2"],
    "llama": ["self_attn.o_proj", "mlp.down_proj"],
    "qwen3": ["self_attn.o_proj", "mlp.down_proj"],
    # Norms stand between linear and stream, or after both.
    "gemma3": [],
    "opt-post-norm": [],
}


def loaded(folder: Path, dtype: torch.dtype = torch.float32) -> Decoder:
    return Decoder(Checkpoint(folder), dtype)


@pytest.mark.parametrize("name", WRITERS)
def test_writers_of_the_stream_are_found_in_every_architecture(name: str, tmp_path: Path) -> None:
    assert name in CONFIGS
    write_architecture(tmp_path / "model", name)
    for dtype in (torch.float32, torch.bfloat16):
        decoder = loaded(tmp_path / "model", dtype)
        with torch.inference_mode():
            assert residual_writers(decoder, decoder.load_block(1, decoder.read_block(1)), 1) == WRITERS[name]


@torch.no_grad()
def test_moments_and_drifts_are_those_of_hooks_on_two_plain_models(bloom: Path) -> None:
    decoder = loaded(bloom)
    model = AutoModelForCausalLM.from_pretrained(bloom, dtype=torch.float64)
    dense_block, block = model.transformer.h[1], model.transformer.h[2]  # as if the second were compressed
    generator = torch.Generator().manual_seed(0)
    dense = torch.randn(SEGMENTS, LENGTH, 32, generator=generator)
    hidden = dense + 0.2 * torch.randn(SEGMENTS, LENGTH, 32, generator=generator)
    own = [decoder.load_block(index, decoder.read_block(index)) for index in (2, 1)]
    passed: list[torch.Tensor] = []
    pairs = [
        Pair(hidden[start:stop], dense[start:stop], held_out(start, stop))
        for start, stop in ((0, 3), (3, 6), (6, 9), (9, 10))
    ]
    writers = residual_writers(decoder, own[0], 1)
    assert writers == ["self_attention.dense", "mlp.dense_4h_to_h"]
    found = collect_with_drift(decoder, own[0], own[1], 1, pairs, passed.append, writers)

    seen: list[dict[str, tuple[torch.Tensor, torch.Tensor]]] = [{}, {}]
    outputs = []
    alibi, mask = _arguments(decoder)
    for one, states, kept in ((block, hidden, seen[0]), (dense_block, dense, seen[1])):
        hooks = [
            module.register_forward_hook(
                lambda _, inputs, output, name=name, kept=kept: kept.__setitem__(name, (inputs[0], output))
            )
            for name, module in one.named_modules()
            if isinstance(module, torch.nn.Linear)
        ]
        result = one(states.double(), alibi=alibi, attention_mask=mask)
        outputs.append(result[0] if isinstance(result, tuple) else result)
        for hook in hooks:
            hook.remove()
    torch.testing.assert_close(torch.cat(passed).double(), outputs[1], atol=1e-5, rtol=1e-5)
    # The stream behind the attention is the block's input and what it adds; behind the whole block, its output.
    attention = "self_attention.dense"
    stream = {
        attention: (dense - hidden).double() + seen[1][attention][1] - seen[0][attention][1],
        "mlp.dense_4h_to_h": outputs[1] - outputs[0],
    }
    held = held_out(0, SEGMENTS)
    assert held.nonzero().flatten().tolist() == [0, 8]
    assert found.held is not None
    assert set(found.drifts) == set(found.held.drifts) == set(found.moments) == set(seen[0])
    for name, (inputs, output) in seen[0].items():
        missing = stream.get(name, seen[1][name][1] - output)
        for part, chosen in ((found, torch.ones(SEGMENTS, dtype=torch.bool)), (found.held, held)):
            x, d = inputs[chosen].flatten(0, 1), missing[chosen].flatten(0, 1)
            torch.testing.assert_close(part.drifts[name].sum.double(), d.t() @ x, atol=2e-4, rtol=1e-4)
            torch.testing.assert_close(part.moments[name].sum.double(), x.t() @ x, atol=2e-4, rtol=1e-4)
            assert part.moments[name].tokens == len(x)
    # The whole moments are bit for bit those of a run that is not fitted.
    plain = collect(decoder, own[0], 1, [pair.hidden for pair in pairs], Statistic.FULL)
    assert all(torch.equal(found.moments[name].sum, plain.moments[name].sum) for name in seen[0])
    # What the last linear gives is not computed there, but found from its moment.
    whole = {name: float(energy) for name, energy in found.energies.items()}
    assert {name: float(energy) for name, energy in plain.energies.items()} == pytest.approx(whole, rel=1e-6)


@pytest.mark.parametrize("new", [False, True])
def test_a_block_that_adds_to_a_linears_output_in_place_has_writers_and_of_the_same_model_no_drift(
    new: bool, tmp_path: Path
) -> None:
    config = FalconConfig(
        vocab_size=400, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, new_decoder_architecture=new,
        num_kv_heads=2, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    decoder = loaded(tmp_path)
    with torch.inference_mode():
        block, hidden = decoder.load_block(1, decoder.read_block(1)), torch.randn(3, LENGTH, 32)
        writers = residual_writers(decoder, block, 1)
        found = collect_with_drift(decoder, block, block, 1, [Pair(hidden, hidden, None)], lambda _: None, writers)
    assert writers == ["self_attention.dense", "mlp.dense_4h_to_h"]
    assert all(not drift.sum.any() for drift in found.drifts.values())


def test_the_same_model_twice_has_no_drift_and_a_given_strength_holds_nothing_out(bloom: Path) -> None:
    decoder = loaded(bloom)
    with torch.inference_mode():
        block = decoder.load_block(0, decoder.read_block(0))
        hidden = torch.randn(3, LENGTH, 32)
        found = collect_with_drift(decoder, block, block, 0, [Pair(hidden, hidden, None)], lambda _: None, [])
    assert found.held is not None and not found.held.moments and not found.held.drifts
    assert {moment.tokens for moment in found.moments.values()} == {3 * LENGTH}
    assert all(not drift.sum.any() for drift in found.drifts.values())


def _arguments(decoder: Decoder) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What a plain block of BLOOM is called with beside hidden states."""
    args, kwargs = decoder._recorded(SEGMENTS, LENGTH)[1]
    named = dict(zip(("alibi", "attention_mask"), args, strict=False)) | kwargs
    return named["alibi"].double(), named["attention_mask"]
