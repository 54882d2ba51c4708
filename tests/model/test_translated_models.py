"""Mixtures of experts, wrapped text models, renamed ones: states of plain transformers, names of the checkpoint."""

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import Gemma3ForConditionalGeneration, Qwen2MoeForCausalLM

from mbs_ray.errors import InputError
from mbs_ray.model.assemble import assemble_packed
from mbs_ray.model.checkpoint import Checkpoint
from mbs_ray.model.configuration import empty_model
from mbs_ray.model.decoder import Decoder
from mbs_ray.model.experts import experts_of
from mbs_ray.model.packed import IntegerScheme, Schemes
from mbs_ray.model.stored_names import StoredNames
from mbs_ray.plan.meta_checkpoint import MetaDecoder, meta_checkpoint
from tests.support.architectures import rewrite
from tests.support.mixtures import MIXTURES, TRANSLATED, WRAPPERS, load_plain, write_translated

IDS = torch.randint(0, 390, (3, 24), generator=torch.Generator().manual_seed(1))
SCHEME = IntegerScheme(4, None, True)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("translated")
    return {name: write_translated(folder / name, name) for name in TRANSLATED}


def staged_logits(decoder: Decoder) -> torch.Tensor:
    hidden = decoder.embed(IDS)
    for index in range(decoder.blocks):
        hidden = decoder.run_block(decoder.load_block(index, decoder.read_block(index)), index, hidden)
    return decoder.logits(decoder.finish(hidden), *decoder.head_rows(0, decoder.vocabulary))


@pytest.mark.parametrize("name", TRANSLATED)
def test_logits_are_those_of_plain_transformers_bit_for_bit(name: str, written: dict[str, Path]) -> None:
    with torch.inference_mode():
        expected = load_plain(written[name], name)(input_ids=IDS, use_cache=False).logits
        assert torch.equal(staged_logits(Decoder(Checkpoint(written[name]), torch.float32)), expected)


@pytest.mark.parametrize("name", ["qwen3-moe", "gpt-oss", "deepseek-v3"])
def test_in_bfloat16_only_the_sum_over_experts_is_rounded_otherwise(name: str, written: dict[str, Path]) -> None:
    """By default transformers sums what experts give in float32, as the stages do; one by one it rounds every sum."""
    model = load_plain(written[name], name, torch.bfloat16)
    model.set_experts_implementation("grouped_mm")
    with torch.inference_mode():
        expected = model(input_ids=IDS, use_cache=False).logits.float()
        own = staged_logits(Decoder(Checkpoint(written[name]), torch.bfloat16)).float()
    # A token whose experts weigh alike may go to others.
    assert float((own - expected).abs().median()) < 0.02 * float(expected.std())


@pytest.mark.parametrize("name", TRANSLATED)
def test_what_no_method_touched_is_given_back_bit_for_bit(name: str, written: dict[str, Path]) -> None:
    stored = load_file(written[name] / "model.safetensors")
    decoder = Decoder(Checkpoint(written[name]), torch.float32)
    given: dict[str, torch.Tensor] = {}
    for index in range(decoder.blocks):
        block = decoder.read_block(index)
        for linear, shape in decoder.linears(index).items():
            assert block[f"{linear}.weight"].shape == shape
        given |= decoder.to_stored(index, block)
    assert not given.keys() & set(decoder.outside_tensors())
    assert given.keys() | set(decoder.outside_tensors()) == stored.keys()
    for tensor, value in given.items():
        assert value.dtype == stored[tensor].dtype and torch.equal(value, stored[tensor]), tensor


@pytest.mark.parametrize(
    ("name", "stored"),
    {
        "qwen3-moe": "model.layers.1.mlp.experts.3.down_proj.weight",
        "mixtral": "model.layers.1.block_sparse_moe.experts.3.w2.weight",
        "deepseek-v3": "model.layers.1.mlp.experts.3.down_proj.weight",
        "gpt-oss": None,
    }.items(),
)
def test_a_matrix_of_an_expert_is_named_as_the_checkpoint_names_it(
    name: str, stored: str | None, written: dict[str, Path]
) -> None:
    decoder = Decoder(Checkpoint(written[name]), torch.float32)
    assert decoder.stored_weight(1, "mlp.experts.3.down_proj") == stored
    assert (
        stored in decoder.checkpoint.tensors
    ) or "model.layers.1.mlp.experts.down_proj" in decoder.checkpoint.tensors


@pytest.mark.parametrize("name", MIXTURES)
def test_routers_and_weights_of_shared_experts_are_no_linears_to_compress(name: str, written: dict[str, Path]) -> None:
    decoder = Decoder(Checkpoint(written[name]), torch.float32)
    experts = {"deepseek-v3": 8}.get(name, 4)
    assert list(decoder.mixtures(1).values()) == [experts]
    (mixture,) = decoder.mixtures(1)
    own = [linear for linear in decoder.linears(1) if linear.startswith(f"{mixture}.")]
    assert len(own) == 3 * experts
    assert not any(rows in (1, experts) for rows, _ in decoder.linears(1).values())
    outside = decoder.linears_outside()
    assert ("model.layers.1.mlp.shared_expert_gate" in outside) == (name == "qwen2-moe")
    # Other programs take any router for a linear, and know it by its name in the checkpoint.
    routers = {
        "mixtral": "block_sparse_moe.gate",
        "granite-moe": "block_sparse_moe.router.layer",
        "gpt-oss": "mlp.router",
    }
    assert f"model.layers.1.{routers.get(name, 'mlp.gate')}" in outside


def test_a_shared_expert_with_as_many_rows_as_there_are_experts_is_no_router(tmp_path: Path) -> None:
    """Qwen3-Next's defaults are 512 of both."""
    config = copy.deepcopy(TRANSLATED["qwen2-moe"])
    config.num_experts = config.shared_expert_intermediate_size = 40
    Qwen2MoeForCausalLM(config).save_pretrained(tmp_path)
    decoder = Decoder(Checkpoint(tmp_path), torch.float32)
    shared = {f"mlp.shared_expert.{name}_proj" for name in ("gate", "up", "down")}
    assert shared <= decoder.linears(0).keys()
    assert "mlp.shared_expert_gate" not in decoder.linears(0)


def test_a_wrapper_around_a_text_model_that_caps_its_logits_is_refused(tmp_path: Path) -> None:
    config = copy.deepcopy(TRANSLATED["gemma3"])
    config.text_config.final_logit_softcapping = 2.0
    Gemma3ForConditionalGeneration(config).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"Gemma3ForCausalLM scales or caps its logits, .* save the text model"):
        Decoder(Checkpoint(tmp_path), torch.float32)


def test_rules_written_as_expressions_and_names_that_a_rule_would_match_again_are_understood(tmp_path: Path) -> None:
    """Laguna's rule renames ``mlp.shared_expert.``, whose dot is any letter: also of ``mlp.shared_experts``."""
    checkpoint = meta_checkpoint(str(write_translated(tmp_path / "mixtral", "mixtral")))
    model = empty_model(checkpoint.folder, checkpoint.config, torch.float32)
    names = StoredNames(checkpoint, model, None)
    assert all(names.stored_name(name) == name for name in checkpoint.tensors)


@pytest.mark.parametrize(("name", "share"), {"qwen3-moe": 0.5, "deepseek-v3": 0.25, "mixtral": 0.5}.items())
def test_the_share_of_tokens_that_reaches_an_expert(name: str, share: float, written: dict[str, Path]) -> None:
    decoder = Decoder(Checkpoint(written[name]), torch.float32)
    assert decoder.routed(1, "mlp.experts.0.up_proj") == share
    assert decoder.routed(1, "self_attn.o_proj") == 1


def test_experts_stored_as_one_tensor_or_one_by_one_are_the_same(written: dict[str, Path], tmp_path: Path) -> None:
    """The layout of Qwen 3.5 MoE and GPT-OSS, for a model that is otherwise stored expert by expert."""
    folder = write_translated(tmp_path / "fused", "qwen3-moe")

    def fuse(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        kept = {name: tensor for name, tensor in tensors.items() if ".experts." not in name}
        for index in range(3):
            prefix = f"model.layers.{index}.mlp.experts."
            each = [
                {part: tensors[f"{prefix}{number}.{part}_proj.weight"] for part in ("gate", "up", "down")}
                for number in range(4)
            ]
            kept[f"{prefix}gate_up_proj"] = torch.stack([torch.cat([one["gate"], one["up"]]) for one in each])
            kept[f"{prefix}down_proj"] = torch.stack([one["down"] for one in each])
        return kept

    rewrite(folder, fuse)
    one, other = (Decoder(Checkpoint(path), torch.float32) for path in (folder, written["qwen3-moe"]))
    for index in range(3):
        fused, listed = one.read_block(index), other.read_block(index)
        assert fused.keys() == listed.keys()
        assert all(torch.equal(fused[name], listed[name]) for name in fused)
        given = one.to_stored(index, fused)
        assert all(torch.equal(given[name], one.checkpoint.read(name)) for name in given)
    assert one.stored_weight(0, "mlp.experts.0.up_proj") is None
    with pytest.raises(
        InputError, match=r"block 0 mlp\.experts\.0\.gate_proj: this checkpoint holds all experts in one"
    ):
        assemble_packed(one, tmp_path / "packed", Schemes(SCHEME), tmp_path / "export", "")


def test_a_checkpoint_without_one_expert_is_refused_by_name(tmp_path: Path) -> None:
    folder = write_translated(tmp_path / "qwen3-moe", "qwen3-moe")
    lacking = "model.layers.1.mlp.experts.2.up_proj.weight"
    rewrite(folder, lambda tensors: {name: tensor for name, tensor in tensors.items() if name != lacking})
    with pytest.raises(InputError, match=r"the checkpoint lacks model\.layers\.1\.mlp\.experts\.2\.up_proj\.weight"):
        Decoder(Checkpoint(folder), torch.float32)


@pytest.mark.parametrize("name", ["qwen3-moe", "gpt-oss", "deepseek-v3", "gemma3"])
def test_on_the_meta_device_it_is_the_same_model(name: str, written: dict[str, Path]) -> None:
    decoder = Decoder(Checkpoint(written[name]), torch.float32)
    meta = MetaDecoder(meta_checkpoint(str(written[name])), torch.float32)
    assert [meta.linears(index) for index in range(3)] == [decoder.linears(index) for index in range(3)]
    block = meta.load_block(1, meta.read_block(1))
    assert meta.run_block(block, 1, meta.embed(IDS)).shape == (3, 24, 32)
    total = sum(torch.Size(info.shape).numel() for info in meta.checkpoint.tensors.values())
    assert total == sum(torch.Size(info.shape).numel() for info in decoder.checkpoint.tensors.values())


@pytest.mark.parametrize("name", WRAPPERS)
def test_what_is_beside_the_text_model_is_carried_over_and_never_packed(name: str, written: dict[str, Path]) -> None:
    decoder = Decoder(Checkpoint(written[name]), torch.float32)
    outside = decoder.outside_tensors()
    assert any("vision_tower" in tensor for tensor in outside)
    assert any("vision_tower" in linear for linear in decoder.linears_outside())
    plain = load_plain(written[name], name)
    linears = {linear for linear, one in plain.named_modules() if isinstance(one, torch.nn.Linear)}
    inside = {full for index in range(3) for full in decoder.linear_names(index).values()}
    assert inside | set(decoder.linears_outside()) == linears


def test_the_rows_of_an_expert_are_known_only_while_it_is_called(written: dict[str, Path]) -> None:
    decoder = Decoder(Checkpoint(written["qwen3-moe"]), torch.float32)
    block = decoder.load_block(0, decoder.read_block(0))
    (mixture,) = experts_of(block).values()
    seen = []
    mixture.get_submodule("1.up_proj").register_forward_hook(lambda *_: seen.append(mixture.rows))
    with torch.inference_mode():
        decoder.run_block(block, 0, decoder.embed(IDS))
    assert mixture.rows is None
    assert len(seen) == 1 and seen[0].unique().numel() == seen[0].numel() > 0


def test_a_wrapper_whose_text_model_has_no_causal_model_of_its_own_is_refused(
    written: dict[str, Path], tmp_path: Path
) -> None:
    content = json.loads((written["gemma3"] / "config.json").read_text())
    content["text_config"] = {"model_type": "siglip_text_model"}
    (tmp_path / "config.json").write_text(json.dumps({**content, "model_type": "siglip"}))
    with pytest.raises(InputError, match=r"config\.json: .* has no causal language model"):
        meta_checkpoint(str(tmp_path))
