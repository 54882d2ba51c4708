"""Block files become a checkpoint that transformers loads, bit for bit."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from mbs_ray.errors import InputError
from mbs_ray.model.checkpoint import Checkpoint
from mbs_ray.model.decoder import Decoder
from mbs_ray.model.export import assemble, read_block, write_block, write_outside


def write_all(decoder: Decoder, blocks: Path, shift: float) -> dict[str, torch.Tensor]:
    """All blocks with ``shift`` added to every linear's weight; what was written, by stored name."""
    blocks.mkdir(parents=True)
    written = {}
    for index in range(decoder.blocks):
        tensors = decoder.read_block(index)
        for name in decoder.linears(index):
            tensors[f"{name}.weight"] += shift
        names = decoder.block_tensors(index)
        block = {names[name]: tensor for name, tensor in tensors.items()}
        write_block(blocks, index, block)
        written |= block
    return written


@pytest.mark.parametrize("layout", ["bloom", "hub_bloom", "llama"])
def test_an_assembled_checkpoint_loads_in_transformers_with_exactly_the_written_bits(
    layout: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    source = Checkpoint(request.getfixturevalue(layout))
    decoder = Decoder(source, torch.float32)
    written = write_all(decoder, tmp_path / "blocks", 0.5)
    outside = write_outside(source, decoder, tmp_path / "outside.safetensors")
    target = assemble(source, tmp_path / "blocks", outside, tmp_path / "checkpoint")
    assembled = Checkpoint(target)
    assert assembled.tensors.keys() == source.tensors.keys()
    for name in source.tensors:
        expected = written[name] if name in written else source.read(name)
        assert torch.equal(assembled.read(name), expected), name
    model = AutoModelForCausalLM.from_pretrained(target)
    assert model.dtype == torch.bfloat16
    parameter = dict(model.named_parameters())
    for name, tensor in written.items():
        assert torch.equal(parameter.get(name, parameter.get(f"transformer.{name}")), tensor), name
    assert AutoTokenizer.from_pretrained(target)("The river").input_ids


def test_shards_are_links_to_the_block_files_and_not_copies(bloom: Path, tmp_path: Path) -> None:
    source = Checkpoint(bloom)
    decoder = Decoder(source, torch.float32)
    write_all(decoder, tmp_path / "blocks", 0.0)
    outside = write_outside(source, decoder, tmp_path / "outside.safetensors")
    target = assemble(source, tmp_path / "blocks", outside, tmp_path / "checkpoint")
    inodes = {path.stat().st_ino for path in target.glob("*.safetensors")}
    expected = {path.stat().st_ino for path in [outside, *(tmp_path / "blocks").glob("*.safetensors")]}
    assert inodes == expected


def test_whoever_may_read_the_folder_may_read_the_blocks(bloom: Path, tmp_path: Path) -> None:
    for mode, expected in ((0o755, 0o644), (0o700, 0o600)):
        folder = tmp_path / str(mode)
        folder.mkdir()
        folder.chmod(mode)
        written = write_block(folder, 0, load_file(bloom / "model.safetensors"))
        assert written.stat().st_mode & 0o777 == expected


def test_an_unfinished_run_gives_no_checkpoint(bloom: Path, tmp_path: Path) -> None:
    source = Checkpoint(bloom)
    decoder = Decoder(source, torch.float32)
    write_all(decoder, tmp_path / "blocks", 0.0)
    (tmp_path / "blocks" / "block-00002.safetensors").unlink()
    outside = write_outside(source, decoder, tmp_path / "outside.safetensors")
    with pytest.raises(InputError, match=r"lacks transformer\.h\.2\."):
        assemble(source, tmp_path / "blocks", outside, tmp_path / "checkpoint")
    assert not (tmp_path / "checkpoint").exists()


def test_a_block_is_read_back_bit_for_bit_and_a_missing_one_is_none(bloom: Path, tmp_path: Path) -> None:
    tensors = load_file(bloom / "model.safetensors")
    write_block(tmp_path, 3, tensors)
    stored = read_block(tmp_path, 3)
    assert stored is not None and stored.keys() == tensors.keys()
    assert all(torch.equal(stored[name], tensors[name]) for name in tensors)
    assert read_block(tmp_path, 4) is None
    assert [path.name for path in tmp_path.iterdir()] == ["block-00003.safetensors"]
