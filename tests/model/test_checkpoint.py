"""Reading a checkpoint tensor by tensor, in both layouts, and refusing broken ones."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mbs_ray.errors import InputError
from mbs_ray.model.checkpoint import Checkpoint, open_checkpoint
from mbs_ray.model.fingerprint import fingerprint


def test_every_tensor_is_found_by_the_models_name_in_both_layouts(bloom: Path, hub_bloom: Path) -> None:
    reference = load_file(bloom / "model.safetensors")
    for folder in (bloom, hub_bloom):
        checkpoint = Checkpoint(folder)
        for name, tensor in reference.items():
            stored = checkpoint.stored_name(name)
            assert stored is not None
            assert torch.equal(checkpoint.read(stored), tensor)
        assert checkpoint.stored_name("transformer.h.99.mlp.dense_h_to_4h.weight") is None


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
    with pytest.raises(InputError, match=f"model-00001-of-00003.safetensors: lacks {lost}"):
        Checkpoint(broken)


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


def test_an_index_cannot_point_outside_its_folder(hub_bloom: Path, tmp_path: Path) -> None:
    evil = Path(shutil.copytree(hub_bloom, tmp_path / "evil"))
    index = json.loads((evil / "model.safetensors.index.json").read_text())
    index["weight_map"]["ln_f.weight"] = "../../other/model.safetensors"
    (evil / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match="no safetensors file of this folder"):
        Checkpoint(evil)


def test_a_folder_without_a_model_and_a_missing_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no config\.json"):
        open_checkpoint(str(tmp_path))
    with pytest.raises(InputError, match="no such folder"):
        open_checkpoint(str(tmp_path / "nowhere"))


def test_the_fingerprint_changes_with_a_single_bit_and_not_with_a_copy(bloom: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    original = fingerprint(Checkpoint(bloom), cache)
    same = Path(shutil.copytree(bloom, tmp_path / "same"))
    assert fingerprint(Checkpoint(same), cache) == original
    other = Path(shutil.copytree(bloom, tmp_path / "other"))
    tensors = load_file(other / "model.safetensors")
    weight = tensors["transformer.h.2.mlp.dense_h_to_4h.weight"]
    weight.view(torch.int16)[3, 4] ^= 1
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    assert fingerprint(Checkpoint(other), cache) != original


def test_the_fingerprint_is_read_once_and_again_when_a_file_changed(bloom: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bloom, tmp_path / "copy"))
    seen: list[int] = []
    first = fingerprint(Checkpoint(copy), tmp_path / "cache", lambda done, total: seen.append(done))
    count = len(seen)
    assert count > 0
    assert fingerprint(Checkpoint(copy), tmp_path / "cache", lambda done, total: seen.append(done)) == first
    assert len(seen) == count
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"layer_norm_epsilon": 1e-4}))
    assert fingerprint(Checkpoint(copy), tmp_path / "cache") != first


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_weight_that_is_not_finite_is_named(bloom: Path, tmp_path: Path, value: float) -> None:
    broken = Path(shutil.copytree(bloom, tmp_path / "broken"))
    tensors = load_file(broken / "model.safetensors")
    tensors["transformer.h.1.self_attention.dense.weight"][0, 5] = value
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"h\.1\.self_attention\.dense\.weight holds NaN or infinity"):
        fingerprint(Checkpoint(broken), tmp_path / "cache")
