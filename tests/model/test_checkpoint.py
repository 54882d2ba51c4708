"""Reading a checkpoint tensor by tensor, in both layouts, and refusing broken ones."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPTJConfig, GPTJForCausalLM

from mbs_ray.errors import InputError
from mbs_ray.model.checkpoint import Checkpoint, open_checkpoint
from mbs_ray.model.configuration import empty_model
from mbs_ray.model.decoder import Decoder
from mbs_ray.model.fingerprint import fingerprint
from mbs_ray.model.stored_names import StoredNames
from tests.support.architectures import rewrite, write_architecture


def test_every_tensor_is_found_by_the_models_name_in_both_layouts(bloom: Path, hub_bloom: Path) -> None:
    reference = load_file(bloom / "model.safetensors")
    for folder in (bloom, hub_bloom):
        checkpoint = Checkpoint(folder)
        names = StoredNames(checkpoint, empty_model(folder, checkpoint.config, torch.float32), None)
        for name, tensor in reference.items():
            assert torch.equal(checkpoint.read(names.find(name, tensor.shape)), tensor)
        assert names.stored_name("transformer.h.99.mlp.dense_h_to_4h.weight") is None


def test_rows_are_gathered_one_by_one_and_in_runs(hub_bloom: Path) -> None:
    checkpoint = Checkpoint(hub_bloom)
    whole = checkpoint.read("word_embeddings.weight")
    rows = torch.tensor([0, 1, 2, 7, 30, 31, 399])
    assert torch.equal(checkpoint.gather_rows("word_embeddings.weight", rows), whole[rows])
    assert torch.equal(checkpoint.read_rows("word_embeddings.weight", 5, 9), whole[5:9])


def test_read_memory_is_aligned_and_does_not_belong_to_the_file(bloom: Path) -> None:
    checkpoint = Checkpoint(bloom)
    for name in checkpoint.tensors:
        tensor = checkpoint.read(name)
        assert tensor.data_ptr() % 64 == 0
        tensor.zero_()
    assert any(checkpoint.read(name).any() for name in checkpoint.tensors)


def test_a_missing_shard_is_named(hub_bloom: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(hub_bloom, tmp_path / "broken"))
    (broken / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(InputError, match=r"model-00002-of-00003\.safetensors.*missing"):
        Checkpoint(broken)


def test_a_shard_that_lacks_a_tensor_of_the_index_is_named(hub_bloom: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(hub_bloom, tmp_path / "broken"))
    shard = broken / "model-00001-of-00003.safetensors"
    tensors = load_file(shard)
    lost = sorted(tensors)[0]
    del tensors[lost]
    save_file(tensors, shard)
    with pytest.raises(InputError, match=f"model-00001-of-00003.safetensors: lacks {lost}, which .*index"):
        Decoder(Checkpoint(broken), torch.float32)


def test_a_truncated_shard_is_named(bloom: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(bloom, tmp_path / "broken"))
    content = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"model\.safetensors: no whole safetensors file"):
        Checkpoint(broken)


def test_pickled_weights_are_refused(bloom: Path, tmp_path: Path) -> None:
    pickled = Path(shutil.copytree(bloom, tmp_path / "pickled"))
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(InputError, match="only safetensors"):
        Checkpoint(pickled)


def edit_index(folder: Path, change: Callable[[dict], object]) -> Path:
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    change(index["weight_map"])
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize("file", ["../../other/model.safetensors", "a/../../model.safetensors", "/model.safetensors"])
def test_an_index_cannot_point_outside_its_folder(hub_bloom: Path, tmp_path: Path, file: str) -> None:
    evil = Path(shutil.copytree(hub_bloom, tmp_path / "evil"))
    edit_index(evil, lambda index: index.update({"ln_f.weight": file}))
    with pytest.raises(InputError, match=r"index\.json: .* is no safetensors file of this folder"):
        Checkpoint(evil)


def test_shards_in_a_folder_of_their_own_are_read(hub_bloom: Path, tmp_path: Path) -> None:
    below = Path(shutil.copytree(hub_bloom, tmp_path / "below"))
    (below / "weights").mkdir()
    for shard in below.glob("*.safetensors"):
        shard.rename(below / "weights" / shard.name)
    edit_index(below, lambda index: index.update({name: f"weights/{file}" for name, file in index.items()}))
    assert_same_tensors(below, hub_bloom)


def assert_same_tensors(folder: Path, other: Path) -> None:
    """Also to transformers."""
    found, expected = Checkpoint(folder), Checkpoint(other)
    assert found.tensors.keys() == expected.tensors.keys()
    for name in expected.tensors:
        assert torch.equal(found.read(name), expected.read(name))
    Decoder(found, torch.float32)
    plain, loading = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not loading["missing_keys"]
    assert torch.equal(plain.get_input_embeddings().weight, expected.read("word_embeddings.weight"))


@pytest.mark.parametrize("name", ["lm_head.weight", "mtp.fc.weight"])
def test_an_index_may_name_tensors_that_no_parameter_is_made_of(hub_bloom: Path, tmp_path: Path, name: str) -> None:
    """A tied head that was not saved; layers for the prediction of several tokens that were left out."""
    folder = Path(shutil.copytree(hub_bloom, tmp_path / "model"))
    edit_index(folder, lambda index: index.update({name: "model-00001-of-00003.safetensors"}))
    assert_same_tensors(folder, hub_bloom)


def test_a_whole_file_comes_before_an_index_that_was_left_beside_it(
    bloom: Path, hub_bloom: Path, tmp_path: Path
) -> None:
    """As in transformers: the index may name shards that are gone."""
    folder = Path(shutil.copytree(hub_bloom, tmp_path / "model"))
    for shard in folder.glob("model-*"):
        shard.unlink()
    whole = {name.removeprefix("transformer."): one for name, one in load_file(bloom / "model.safetensors").items()}
    save_file(whole, folder / "model.safetensors", metadata={"format": "pt"})
    assert_same_tensors(folder, hub_bloom)


@pytest.mark.parametrize(
    "content", ["", "[]", "5", "{}", '{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": {"a": 5}}', "[" * 9999]
)
def test_an_index_that_is_none_is_named(hub_bloom: Path, tmp_path: Path, content: str) -> None:
    folder = Path(shutil.copytree(hub_bloom, tmp_path / "model"))
    (folder / "model.safetensors.index.json").write_text(content)
    with pytest.raises(InputError, match=r"^\S+index\.json: .*weight_map.*; fetch the file again$"):
        Checkpoint(folder)


def test_a_folder_without_a_model_and_a_missing_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no config\.json"):
        open_checkpoint(str(tmp_path))
    with pytest.raises(InputError, match="no such folder"):
        open_checkpoint(str(tmp_path / "nowhere"))


def read_once(folder: Path, cache: Path, progress: Callable[[int, int], None] | None = None) -> str:
    checkpoint = Checkpoint(folder)
    return fingerprint(checkpoint, Decoder(checkpoint, torch.float32).parameter_tensors(), cache, progress)


def test_the_fingerprint_changes_with_a_single_bit_and_not_with_a_copy(bloom: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    original = read_once(bloom, cache)
    same = Path(shutil.copytree(bloom, tmp_path / "same"))
    assert read_once(same, cache) == original
    other = Path(shutil.copytree(bloom, tmp_path / "other"))
    tensors = load_file(other / "model.safetensors")
    weight = tensors["transformer.h.2.mlp.dense_h_to_4h.weight"]
    weight.view(torch.int16)[3, 4] ^= 1
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    assert read_once(other, cache) != original


def test_the_fingerprint_is_read_once_and_again_when_a_file_changed(bloom: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bloom, tmp_path / "copy"))
    seen: list[int] = []
    first = read_once(copy, tmp_path / "cache", lambda done, total: seen.append(done))
    count = len(seen)
    assert count > 0
    assert read_once(copy, tmp_path / "cache", lambda done, total: seen.append(done)) == first
    assert len(seen) == count
    config = json.loads((copy / "config.json").read_text())
    # The same model, whatever version of transformers wrote it.
    (copy / "config.json").write_text(json.dumps(config | {"transformers_version": "4.57.0"}))
    assert read_once(copy, tmp_path / "cache") == first
    (copy / "config.json").write_text(json.dumps(config | {"layer_norm_epsilon": 1e-4}))
    assert read_once(copy, tmp_path / "cache") != first


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_weight_that_is_not_finite_is_named(bloom: Path, tmp_path: Path, value: float) -> None:
    broken = Path(shutil.copytree(bloom, tmp_path / "broken"))
    tensors = load_file(broken / "model.safetensors")
    tensors["transformer.h.1.self_attention.dense.weight"][0, 5] = value
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"h\.1\.self_attention\.dense\.weight holds NaN or infinity"):
        read_once(broken, tmp_path / "cache")


def test_a_stored_mask_of_minus_infinity_is_no_weight(tmp_path: Path) -> None:
    """Older GPT-J and GPT-Neo keep one in every block; transformers reads past it."""
    torch.manual_seed(0)
    config = GPTJConfig(vocab_size=400, n_embd=32, n_layer=2, n_head=4, rotary_dim=4, n_positions=64)
    GPTJForCausalLM(config).half().save_pretrained(tmp_path / "gptj")
    masks = {f"transformer.h.{index}.attn.masked_bias": torch.tensor(-1e9).half() for index in range(2)}
    rewrite(tmp_path / "gptj", lambda tensors: tensors | masks)
    assert read_once(tmp_path / "gptj", tmp_path / "cache")
    decoder = Decoder(Checkpoint(tmp_path / "gptj"), torch.float32)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "gptj")
    assert decoder.parameter_tensors() == {name for name, _ in plain.named_parameters()}
    assert masks.keys() <= decoder.checkpoint.tensors.keys()
    assert set(decoder.block_tensors(0)) >= {"transformer.h.0.attn.masked_bias"}


def test_weights_outside_the_blocks_are_scanned_too(tmp_path: Path) -> None:
    for name in ("model.norm.weight", "lm_head.weight", "model.embed_tokens.weight"):
        folder = write_architecture(tmp_path / name, "llama-untied")
        rewrite(folder, lambda tensors, name=name: tensors | {name: tensors[name] * float("nan")})
        with pytest.raises(InputError, match=f"model.safetensors: {name} holds NaN or infinity"):
            read_once(folder, tmp_path / "cache")
