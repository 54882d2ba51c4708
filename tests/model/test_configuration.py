"""A configuration is read as transformers reads it, or refused in one line that names config.json and the field."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from mbs_ray.errors import InputError
from mbs_ray.model.checkpoint import Checkpoint
from mbs_ray.model.configuration import read_config
from mbs_ray.model.decoder import Decoder
from mbs_ray.plan.meta_checkpoint import meta_checkpoint
from tests.support.architectures import rewrite, write_architecture

IDS = torch.arange(12).view(1, 12)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_architecture(tmp_path_factory.mktemp("configuration") / "llama", "llama")


@pytest.fixture
def model(source: Path, tmp_path: Path) -> Path:
    """The same weights; whatever is done to config.json stays here."""
    folder = tmp_path / "model"
    folder.mkdir()
    for file in source.iterdir():
        (folder / file.name).hardlink_to(file)
    (folder / "config.json").unlink()
    (folder / "config.json").write_text((source / "config.json").read_text())
    return folder


def configure(folder: Path, **fields: Any) -> Path:
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | fields))
    return folder


REFUSED: dict[str, Any] = {
    "pad_token_id": 400,
    "dtype": "torch.bfloat16",
    "torch_dtype": "auto",
    "rms_norm_eps": 0,
    "max_position_embeddings": 256.0,
    "num_attention_heads": 5,
    "num_hidden_layers": 10**9,
    "num_key_value_heads": 0,
    "vocab_size": -1,
    "head_dim": 0,
    "hidden_act": "unheard-of",
    "rope_parameters": {"rope_type": "unheard-of", "rope_theta": 1e4},
    "rope_scaling": {"rope_type": "unheard-of", "factor": 2.0},
    "model_type": "unheard-of",
    "num_labels": "two",
    "per_layer_config": [1],
    "base_model_tp_plan": 3,
    "attribute_map": 5,
}


@pytest.mark.parametrize("field", REFUSED)
def test_a_value_that_transformers_does_not_take_is_one_line_naming_file_and_field(field: str, model: Path) -> None:
    before = json.loads((model / "config.json").read_text())
    content = {name: value for name, value in before.items() if field != "torch_dtype" or name != "dtype"}
    (model / "config.json").write_text(json.dumps(content | {field: REFUSED[field]}))
    with pytest.raises(InputError) as caught:
        Decoder(Checkpoint(model), torch.float32)
    said = str(caught.value)
    assert said.startswith(f"{model / 'config.json'}: ") and "\n" not in said
    # transformers calls the older field by its new name.
    assert (field if field != "rope_scaling" else "rope_") in said
    assert len(said) < len(str(model)) + 400


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", "[" * 9999, '{"model_type": 5}', '{"model_type": "\\u0000"}']
)
def test_a_configuration_that_is_no_json_object_is_named(content: str, model: Path) -> None:
    (model / "config.json").write_text(content)
    for work in (read_config, lambda folder: meta_checkpoint(str(folder))):
        with pytest.raises(InputError, match=r"^\S+config\.json: [^\n]+$"):
            work(model)


def test_mbs_plan_names_the_field_as_well(model: Path) -> None:
    with pytest.raises(InputError, match=r"config\.json: hidden_act: KeyError: 'unheard-of'"):
        meta_checkpoint(str(configure(model, hidden_act="unheard-of")))


@pytest.mark.parametrize(
    "fields",
    [
        {"_attn_implementation": "flash_attention_2"},
        {"attn_implementation": "flash_attention_3"},
        {"attn_implementation": "nowhere/no-kernel"},
        {"output_attentions": True},
        {"output_hidden_states": True},
        {"return_dict": False},
        {"use_cache": False},
        {"architectures": None},
    ],
)
def test_what_says_how_to_compute_and_not_what_is_ours_to_choose(fields: dict[str, Any], model: Path) -> None:
    plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    with torch.inference_mode():
        expected = plain(IDS).logits
        decoder = Decoder(Checkpoint(configure(model, **fields)), torch.float32)
        hidden = decoder.embed(IDS)
        for index in range(decoder.blocks):
            hidden = decoder.run_block(decoder.load_block(index, decoder.read_block(index)), index, hidden)
        assert torch.equal(decoder.logits(decoder.finish(hidden), *decoder.head_rows(0, 400)), expected)


def test_a_kernel_that_is_always_there_is_the_configurations_choice(model: Path) -> None:
    for kernel in ("eager", "sdpa"):
        assert read_config(configure(model, attn_implementation=kernel))._attn_implementation == kernel


def test_remote_code_is_never_run_and_never_asked_for(model: Path) -> None:
    (model / "evil.py").write_text(f"open({str(model / 'ran')!r}, 'w')\n")
    configure(model, model_type="unheard-of", auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.A"})
    with pytest.raises(
        InputError, match=r"config\.json: model_type: 'unheard-of' is unknown .* \(auto_map\) is never run"
    ):
        read_config(model)
    assert not (model / "ran").exists()


@pytest.mark.parametrize("blocks", [0, -1])
def test_a_model_of_no_block_is_refused(blocks: int, model: Path) -> None:
    with pytest.raises(InputError, match=rf"config\.json: num_hidden_layers: {blocks} blocks, where the files hold"):
        Decoder(Checkpoint(configure(model, num_hidden_layers=blocks)), torch.float32)


OUTSIDE = {
    "llama": ("model.embed_tokens.weight", "model.norm.weight"),
    "llama-untied": ("model.embed_tokens.weight", "lm_head.weight"),
    "gpt2": ("transformer.wpe.weight", "transformer.ln_f.bias"),
    "opt-post-norm": ("model.decoder.project_in.weight", "model.decoder.embed_positions.weight"),
}


@pytest.mark.parametrize(("name", "tensor"), [(name, one) for name, two in OUTSIDE.items() for one in two])
def test_a_tensor_outside_the_blocks_has_the_shape_that_the_configuration_says(
    name: str, tensor: str, tmp_path: Path
) -> None:
    folder = write_architecture(tmp_path / name, name)
    rewrite(folder, lambda tensors: tensors | {tensor: torch.cat([tensors[tensor], tensors[tensor][:1]])})
    with pytest.raises(RuntimeError, match=r"mismatched|size mismatch"):
        AutoModelForCausalLM.from_pretrained(folder)
    with pytest.raises(InputError, match=rf"{name}: {tensor} is \[\d+.*\], the configuration says \[") as caught:
        Decoder(Checkpoint(folder), torch.float32)
    assert "\n" not in str(caught.value)


def test_a_bias_of_the_head_that_the_model_does_not_have_is_read_past(tmp_path: Path) -> None:
    """As in transformers, which only warns of it."""
    folder = write_architecture(tmp_path / "llama", "llama-untied")
    rewrite(folder, lambda tensors: tensors | {"lm_head.bias": torch.ones(400)})
    assert Decoder(Checkpoint(folder), torch.float32).head_rows(0, 2)[1] is None
