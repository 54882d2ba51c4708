"""Packed blocks become a checkpoint that transformers loads with exactly the weights of the dense one."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from mbs_ray.errors import InputError
from mbs_ray.methods import RTN, Amounts, method_spec
from mbs_ray.model.assemble import assemble, assemble_packed
from mbs_ray.model.block_files import block_file, write_block, write_outside
from mbs_ray.model.checkpoint import Checkpoint, read_header
from mbs_ray.model.decoder import Decoder
from mbs_ray.model.manifest import verify
from mbs_ray.model.packed import IntegerScheme, Schemes, pack_linear, packed_block
from tests.support.models import write_bloom

IDS = torch.arange(60).view(3, 20)


def compressed(
    source: Checkpoint, method: RTN, folder: Path, amounts: Amounts | None = None
) -> tuple[Path, Path, IntegerScheme]:
    """Dense checkpoint and packed blocks of a model whose linears were all rounded, alike or each to its amount."""
    decoder = Decoder(source, torch.float32)
    common = IntegerScheme.of(method_spec(method))
    assert common is not None
    for index in range(decoder.blocks):
        tensors, packed = decoder.read_block(index), {}
        own = {} if amounts is None else amounts.methods(method, index)
        for linear in decoder.linears(index):
            scheme = IntegerScheme.of(method_spec(own.get(linear, method)))
            assert scheme is not None
            result = own.get(linear, method).compress(tensors[f"{linear}.weight"], None)
            tensors[f"{linear}.weight"] = result.weight
            packed[decoder.stored_weight(index, linear)] = pack_linear(
                result.codes, result.scales, result.zeros, scheme
            )
        dense = decoder.to_stored(index, tensors)
        write_block(folder / "packed", index, packed_block(dense, packed))
        write_block(folder / "blocks", index, dense)
    outside = write_outside(source, decoder, folder / "outside.safetensors")
    shards = [outside, *sorted((folder / "blocks").iterdir())]
    return assemble(source, shards, folder / "checkpoint", "dense"), folder / "packed", common


def exported(source: Path, method: RTN, folder: Path) -> tuple[Path, Path]:
    """Folders of the dense and of the packed checkpoint."""
    dense, packed, scheme = compressed(Checkpoint(source), method, folder)
    decoder = Decoder(Checkpoint(dense), torch.float32)
    return dense, assemble_packed(decoder, packed, Schemes(scheme), folder / "export", "packed")


def assert_same_model(dense: Path, packed: Path) -> None:
    expected, loaded = (AutoModelForCausalLM.from_pretrained(folder) for folder in (dense, packed))
    parameters = dict(loaded.named_parameters())
    for name, parameter in expected.named_parameters():
        assert parameters[name].dtype == parameter.dtype
        assert torch.equal(parameters[name], parameter), name
    with torch.no_grad():
        assert torch.equal(loaded(IDS).logits, expected(IDS).logits)


@pytest.mark.parametrize("name", ["bloom", "hub_bloom", "llama"])
@pytest.mark.parametrize("group_size", [8, None])
def test_linears_of_several_widths_load_with_the_weights_of_the_dense_one(
    name: str, group_size: int | None, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    source, every = Checkpoint(request.getfixturevalue(name)), itertools.cycle((2, 3, 4, 8, 5, 6, 7))
    decoder = Decoder(source, torch.float32)
    widths = {index: {linear: next(every) for linear in decoder.linears(index)} for index in range(decoder.blocks)}
    method = RTN(bits=4, symmetric=True, group_size=group_size)
    dense, packed, scheme = compressed(source, method, tmp_path, Amounts("bits", widths))
    decoder = Decoder(Checkpoint(dense), torch.float32)
    export = assemble_packed(decoder, packed, Schemes(scheme, widths), tmp_path / "export", "packed")
    expected, loaded = (AutoModelForCausalLM.from_pretrained(folder) for folder in (dense, export))
    with torch.no_grad():  # the first forward unpacks what lies packed until then
        assert torch.equal(loaded(IDS).logits, expected(IDS).logits)
    parameters = dict(loaded.named_parameters())
    for weight, parameter in expected.named_parameters():
        assert torch.equal(parameters[weight], parameter), weight
    groups = json.loads((export / "config.json").read_text())["quantization_config"]["config_groups"].values()
    found = {target: group["weights"]["num_bits"] for group in groups for target in group["targets"]}
    named = {path: widths[index][one] for index in widths for one, path in decoder.linear_names(index).items()}
    assert found == named


def test_several_widths_with_zero_points_are_refused(bloom: Path, tmp_path: Path) -> None:
    decoder = Decoder(Checkpoint(bloom), torch.float32)
    widths = {index: dict.fromkeys(decoder.linears(index), 3 + index % 2) for index in range(decoder.blocks)}
    for reader, message in (
        ("transformers", "transformers 5.23 .* reads zero points only of checkpoints with one width"),
        ("vllm", "has no kernel for 3 bits"),
    ):
        with pytest.raises(InputError, match=message):
            schemes = Schemes(IntegerScheme(3, 8, symmetric=False), widths)
            assemble_packed(decoder, tmp_path, schemes, tmp_path / "export", "", reader)


@pytest.mark.parametrize(("bits", "symmetric", "group_size"), itertools.product((2, 3, 4, 8), (True, False), (8, None)))
@pytest.mark.parametrize("layout", ["bloom", "hub_bloom"])
def test_a_packed_bloom_loads_with_the_weights_and_the_logits_of_the_dense_one(
    layout: str,
    bits: int,
    symmetric: bool,
    group_size: int | None,
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    method = RTN(bits=bits, symmetric=symmetric, group_size=group_size)
    assert_same_model(*exported(request.getfixturevalue(layout), method, tmp_path))


def test_so_does_a_llama_with_a_head_of_its_own_that_stays_as_it_is(llama: Path, tmp_path: Path) -> None:
    dense, packed = exported(llama, RTN(bits=4, group_size=16), tmp_path)
    assert_same_model(dense, packed)
    config = json.loads((packed / "config.json").read_text())["quantization_config"]
    assert config["ignore"] == ["lm_head"]
    assert Checkpoint(packed).tensors["lm_head.weight"].dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_so_does_a_model_of_another_type(dtype: torch.dtype, tmp_path: Path) -> None:
    source = write_bloom(tmp_path / "source", layers=1, dtype=dtype)
    dense, packed = exported(source, RTN(bits=4, group_size=8), tmp_path / "run")
    assert AutoModelForCausalLM.from_pretrained(packed).dtype == dtype
    assert_same_model(dense, packed)


def test_the_configuration_says_what_vllm_and_transformers_ask_for(bloom: Path, tmp_path: Path) -> None:
    _, packed = exported(bloom, RTN(bits=3, group_size=16), tmp_path)
    config = json.loads((packed / "config.json").read_text())["quantization_config"]
    assert config["quant_method"] == "compressed-tensors" and config["format"] == "pack-quantized"
    (group,) = config["config_groups"].values()
    assert group["targets"] == ["Linear"]
    assert (
        group["weights"] | {"num_bits": 3, "strategy": "group", "group_size": 16, "symmetric": False}
        == group["weights"]
    )
    assert config["ignore"] == ["lm_head"]


def test_all_but_the_linears_of_the_blocks_is_linked_or_copied(hub_bloom: Path, tmp_path: Path) -> None:
    dense, packed = exported(hub_bloom, RTN(bits=4), tmp_path)
    assert Checkpoint(packed).files[0].stat().st_ino == Checkpoint(dense).files[0].stat().st_ino
    assert Checkpoint(packed).files[1].stat().st_ino == (tmp_path / "packed" / block_file(0)).stat().st_ino
    for name, info in Checkpoint(dense).tensors.items():
        if len(info.shape) == 1 or not name.startswith("h."):
            assert torch.equal(Checkpoint(packed).read(name), Checkpoint(dense).read(name)), name
    assert (packed / "README.md").read_text() == "packed"
    index = json.loads((packed / "model.safetensors.index.json").read_text())
    tensors = Checkpoint(packed).tensors.values()
    assert index["metadata"]["total_size"] == sum(one.dtype.itemsize * torch.Size(one.shape).numel() for one in tensors)
    assert AutoTokenizer.from_pretrained(packed)("The river").input_ids


def test_a_missing_packed_block_and_one_of_another_scheme_are_named(bloom: Path, tmp_path: Path) -> None:
    dense, packed, scheme = compressed(Checkpoint(bloom), RTN(bits=4), tmp_path)
    decoder = Decoder(Checkpoint(dense), torch.float32)
    other = IntegerScheme(bits=4, group_size=None, symmetric=True)
    with pytest.raises(InputError, match=r"block-00000\.safetensors: holds .*weight_zero_point, which"):
        assemble_packed(decoder, packed, Schemes(other), tmp_path / "export", "")
    (packed / block_file(2)).unlink()
    with pytest.raises(InputError, match=r"packed/block-00002\.safetensors: missing"):
        assemble_packed(decoder, packed, Schemes(scheme), tmp_path / "export", "")
    assert not (tmp_path / "export").exists()


def test_a_packed_checkpoint_is_no_model_to_compress_again(bloom: Path, tmp_path: Path) -> None:
    _, packed = exported(bloom, RTN(bits=4), tmp_path)
    assert read_header(Checkpoint(packed).files[1])
    with pytest.raises(InputError, match=r"config\.json: quantization_config .* give the dense checkpoint"):
        Decoder(Checkpoint(packed), torch.float32)


@pytest.mark.parametrize("layout", ["bloom", "hub_bloom"])
def test_for_vllm_a_bloom_leaves_the_shape_of_its_fused_linears_out_and_nothing_else(
    layout: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    dense, blocks, scheme = compressed(
        Checkpoint(request.getfixturevalue(layout)), RTN(bits=4, group_size=8, symmetric=True), tmp_path
    )
    decoder = Decoder(Checkpoint(dense), torch.float32)
    usual, own = (
        assemble_packed(decoder, blocks, Schemes(scheme), tmp_path / reader, "card", reader)
        for reader in ("transformers", "vllm")
    )
    shapes = {name for name in stored(usual) if name.endswith("query_key_value.weight_shape")}
    assert len(shapes) == decoder.blocks
    assert stored(usual).keys() - stored(own).keys() == shapes
    assert all(torch.equal(tensor, stored(usual)[name]) for name, tensor in stored(own).items())
    index = json.loads((own / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(stored(own))
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in stored(own).values())
    assert verify(own).wrong == []
    # The run's own files are as they were.
    assert_same_model(dense, usual)


def test_what_vllm_would_not_read_is_refused_with_the_version_it_was_seen_with(bloom: Path, tmp_path: Path) -> None:
    for number, (method, message) in enumerate(
        [
            (RTN(bits=3, group_size=8, symmetric=True), "vLLM 0.32 .*has no kernel for 3 bits"),
            (RTN(bits=4, group_size=8), "takes query_key_value apart by heads"),
        ]
    ):
        dense, blocks, scheme = compressed(Checkpoint(bloom), method, tmp_path / str(number))
        decoder = Decoder(Checkpoint(dense), torch.float32)
        with pytest.raises(InputError, match=f"--reader vllm: .*{message}"):
            assemble_packed(decoder, blocks, Schemes(scheme), tmp_path / "export", "card", "vllm")
        assert not (tmp_path / "export").exists()


def stored(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}
