"""Block files become a checkpoint that transformers loads, bit for bit."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from mbs_ray.errors import InputError
from mbs_ray.model.assemble import assemble
from mbs_ray.model.block_files import read_block, write_block, write_outside
from mbs_ray.model.checkpoint import Checkpoint
from mbs_ray.model.decoder import Decoder
from mbs_ray.model.manifest import TEMPLATES, verify


def write_all(decoder: Decoder, blocks: Path, shift: float) -> dict[str, torch.Tensor]:
    """All blocks with ``shift`` added to every linear's weight; what was written, by stored name."""
    blocks.mkdir(parents=True)
    written = {}
    for index in range(decoder.blocks):
        tensors = decoder.read_block(index)
        for name in decoder.linears(index):
            tensors[f"{name}.weight"] += shift
        block = decoder.to_stored(index, tensors)
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
    shards = [outside, *sorted((tmp_path / "blocks").glob("block-*.safetensors"))]
    target = assemble(source, shards, tmp_path / "checkpoint", "the card")
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
    shards = [outside, *(tmp_path / "blocks").glob("*.safetensors")]
    target = assemble(source, shards, tmp_path / "checkpoint", "the card")
    inodes = {path.stat().st_ino for path in target.glob("*.safetensors")}
    assert inodes == {shard.stat().st_ino for shard in shards}


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
    shards = [write_outside(source, decoder, tmp_path / "outside.safetensors"), *(tmp_path / "blocks").iterdir()]
    with pytest.raises(InputError, match=r"lacks transformer\.h\.2\."):
        assemble(source, shards, tmp_path / "checkpoint", "the card")
    assert not (tmp_path / "checkpoint").exists()


def test_a_shard_of_another_model_gives_no_checkpoint(bloom: Path, llama: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"model\.safetensors: holds lm_head\.weight, which this model does not have"):
        assemble(Checkpoint(bloom), [*Checkpoint(bloom).files, *Checkpoint(llama).files], tmp_path / "out", "")


def test_our_card_takes_the_place_of_the_sources_and_an_earlier_folder_that_of_the_new_one(
    bloom: Path, tmp_path: Path
) -> None:
    source = shutil.copytree(bloom, tmp_path / "source")
    (source / "README.md").write_text("the dense model's")
    (source / "language_distribution.json").write_text("{}")
    for card in ("first", "second"):
        target = assemble(Checkpoint(source), Checkpoint(source).files, tmp_path / "checkpoint", card)
        assert (target / "README.md").read_text() == card
        (target / "left-over.txt").write_text("of an earlier one")
    assert (target / "language_distribution.json").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "source"]


def test_what_fails_half_way_leaves_the_earlier_folder_and_nothing_else(bloom: Path, tmp_path: Path) -> None:
    source = Checkpoint(bloom)
    target = assemble(source, source.files, tmp_path / "checkpoint", "first")
    with pytest.raises(UnicodeEncodeError):
        assemble(source, source.files, target, "\ud800")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]
    assert (target / "README.md").read_text() == "first"


def test_a_block_is_read_back_bit_for_bit_and_a_missing_one_is_none(bloom: Path, tmp_path: Path) -> None:
    tensors = load_file(bloom / "model.safetensors")
    write_block(tmp_path, 3, tensors)
    stored = read_block(tmp_path, 3)
    assert stored is not None and stored.keys() == tensors.keys()
    assert all(torch.equal(stored[name], tensors[name]) for name in tensors)
    assert read_block(tmp_path, 4) is None
    assert [path.name for path in tmp_path.iterdir()] == ["block-00003.safetensors"]


def test_further_chat_templates_are_copied_and_in_the_manifest(bloom: Path, tmp_path: Path) -> None:
    folder = tmp_path / "source"
    shutil.copytree(bloom, folder)
    templates = {"rag.jinja": "{{ messages }}", "tool_use.jinja": "{{ tools }}"}
    beside = {".hidden.jinja": "", "notes.txt": "", "weights.safetensors": ""}
    (folder / TEMPLATES).mkdir()
    for name, text in (templates | beside).items():
        (folder / TEMPLATES / name).write_text(text)
    (folder / TEMPLATES / "folder.jinja").mkdir()
    (folder / "chat_template.jinja").write_text("{{ messages[0] }}")
    source = Checkpoint(folder)
    target = assemble(source, source.files, tmp_path / "checkpoint", "card")
    copied = {path.name: path.read_text() for path in (target / TEMPLATES).iterdir()}
    assert copied == templates
    tokenizer = AutoTokenizer.from_pretrained(target)
    assert tokenizer.get_chat_template("rag") == templates["rag.jinja"]
    assert verify(target).wrong == [] and verify(target).beside == []
    (target / TEMPLATES / "rag.jinja").write_text("{{ other }}")
    assert verify(target).wrong == [f"{TEMPLATES}/rag.jinja: 11 bytes instead of 14"]


def test_a_linked_folder_of_templates_is_left_out(bloom: Path, tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "source", tmp_path / "elsewhere"
    shutil.copytree(bloom, folder)
    elsewhere.mkdir()
    (elsewhere / "secret.jinja").write_text("not of this model")
    (folder / TEMPLATES).symlink_to(elsewhere)
    source = Checkpoint(folder)
    assert not (assemble(source, source.files, tmp_path / "checkpoint", "card") / TEMPLATES).exists()
