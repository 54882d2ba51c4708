"""The staged way through a model is the model: equal logits, whatever the layout and the chunks."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from mbs_ray.errors import InputError
from mbs_ray.model.checkpoint import Checkpoint
from mbs_ray.model.decoder import Decoder


def staged_logits(decoder: Decoder, token_ids: torch.Tensor, chunk: int) -> torch.Tensor:
    hidden = decoder.embed(token_ids)
    for index in range(decoder.blocks):
        hidden = decoder.run_block(decoder.load_block(index, decoder.read_block(index)), index, hidden)
    finished = decoder.finish(hidden)
    parts = [
        decoder.logits(finished, *decoder.head_rows(start, min(start + chunk, decoder.vocabulary)))
        for start in range(0, decoder.vocabulary, chunk)
    ]
    return torch.cat(parts, dim=-1)


@pytest.mark.parametrize("layout", ["bloom", "hub_bloom", "llama"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_staged_logits_equal_those_of_the_plain_model(
    layout: str, dtype: torch.dtype, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(layout)
    decoder = Decoder(Checkpoint(folder), dtype)
    token_ids = torch.randint(0, 400, (3, 17), generator=torch.Generator().manual_seed(1))
    # transformers' loader knows both layouts by itself.
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    with torch.inference_mode():
        expected = plain(token_ids).logits
        assert torch.equal(staged_logits(decoder, token_ids, 400), expected)
        torch.testing.assert_close(staged_logits(decoder, token_ids, 150), expected)


def test_microbatches_of_changing_sizes_do_not_disturb_one_another(bloom: Path) -> None:
    decoder = Decoder(Checkpoint(bloom), torch.float32)
    token_ids = torch.randint(0, 400, (6, 12), generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        whole = staged_logits(decoder, token_ids, 400)
        for rows in (slice(0, 1), slice(1, 4), slice(4, 6), slice(0, 5)):
            torch.testing.assert_close(staged_logits(decoder, token_ids[rows], 400), whole[rows])
        short = staged_logits(decoder, token_ids[:, :7], 400)
    torch.testing.assert_close(short, whole[:, :7])


def test_blooms_attention_holds_scores_and_llamas_does_not(bloom: Path, llama: Path) -> None:
    assert Decoder(Checkpoint(bloom), torch.float32).holds_scores
    assert not Decoder(Checkpoint(llama), torch.float32).holds_scores


def test_linears_and_tensors_of_a_block_are_those_of_the_checkpoint(bloom: Path, hub_bloom: Path) -> None:
    for folder, prefix in ((bloom, "transformer.h.1."), (hub_bloom, "h.1.")):
        decoder = Decoder(Checkpoint(folder), torch.float32)
        assert decoder.blocks == 4
        assert decoder.linears(1) == {
            "self_attention.query_key_value": (96, 32),
            "self_attention.dense": (32, 32),
            "mlp.dense_h_to_4h": (128, 32),
            "mlp.dense_4h_to_h": (32, 128),
        }
        stored = decoder.block_tensors(1)
        assert decoder.stored_weight(1, "mlp.dense_4h_to_h") == prefix + "mlp.dense_4h_to_h.weight"
        inside = [name for name in decoder.checkpoint.tensors if name.startswith(prefix)]
        assert sorted(stored) == sorted(inside)
        outside = decoder.outside_tensors()
        assert len(outside) + 4 * len(inside) == len(decoder.checkpoint.tensors)


def test_block_1_is_not_taken_for_block_11(tmp_path: Path) -> None:
    from tests.support.models import write_bloom

    decoder = Decoder(Checkpoint(write_bloom(tmp_path / "deep", layers=12)), torch.float32)
    assert all(stored.startswith("transformer.h.1.") for stored in decoder.block_tensors(1))
    assert len(decoder.block_tensors(1)) == len(decoder.block_tensors(11)) == 12


def test_the_slow_but_exact_path_is_refused(bloom: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bloom, tmp_path / "copy"))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"slow_but_exact": True}))
    with pytest.raises(InputError, match="slow_but_exact must be false"):
        Decoder(Checkpoint(copy), torch.float32)


def test_a_checkpoint_without_a_tensor_of_a_block_is_refused(bloom: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    copy = Path(shutil.copytree(bloom, tmp_path / "copy"))
    tensors = load_file(copy / "model.safetensors")
    del tensors["transformer.h.2.mlp.dense_4h_to_h.bias"]
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lacks transformer\.h\.2\.mlp\.dense_4h_to_h\.bias"):
        Decoder(Checkpoint(copy), torch.float32).block_tensors(2)
