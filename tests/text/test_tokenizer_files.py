"""The tokenizer of a checkpoint's folder is the one used, or a line says what is missing; and what each family gets."""

import json
import logging
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import (
    GemmaTokenizer,
    GPT2Tokenizer,
    LlamaTokenizer,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
    XGLMTokenizer,
)

from mbs_ray.errors import InputError
from mbs_ray.text.shards import Document
from mbs_ray.text.tokenization import DocumentTokenizer
from mbs_ray.text.tokenizer_files import load_tokenizer
from tests.text.conftest import save_tokenizer

DOCS = Path(__file__).parents[2] / "docs" / "evaluation.md"


def byte_level(texts: list[str], special: list[str], begin: str | None = None) -> Tokenizer:
    """One in which numbers are words."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=600, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    if begin is not None:
        made.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", special_tokens=[(begin, special.index(begin))]
        )
    return made


def write_config(folder: Path, **config: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def lines(folder: Path) -> str:
    with pytest.raises(InputError) as refused:
        load_tokenizer(str(folder))
    assert "\n" not in str(refused.value) and str(folder) in str(refused.value)
    return str(refused.value)


def test_the_tokens_are_those_of_the_file_where_transformers_makes_another_tokenizer_of_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    special = ["<|endoftext|>", "<s>"]
    own = byte_level(["mwaka 2026 mto ulikuwa umejaa"] * 20, special, begin="<s>")
    PreTrainedTokenizerFast(tokenizer_object=own, eos_token="<|endoftext|>").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text()) | {"tokenizer_class": "Qwen2Tokenizer"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    write_config(tmp_path, model_type="qwen2", vocab_size=300)
    from transformers import AutoTokenizer

    assert len(AutoTokenizer.from_pretrained(tmp_path)("mwaka 2026", add_special_tokens=False)["input_ids"]) == 6
    with caplog.at_level(logging.WARNING):
        tokenizer = DocumentTokenizer(str(tmp_path))
    (stream,) = tokenizer.tokenize([Document("d", "mwaka 2026", 10)])
    assert stream.token_ids.tolist() == [*own.encode("mwaka 2026", add_special_tokens=False).ids, 0]
    assert len(stream) == 3 and tokenizer.begin == (1,)
    assert "makes another normalizer, pre_tokenizer" in caplog.text and "the file's own is used" in caplog.text
    assert load_tokenizer(str(tmp_path)).eos_token == "<|endoftext|>"
    # What the file says and this version cannot read is one line, though transformers would not read that part of it.
    content = json.loads((tmp_path / "tokenizer.json").read_text()) | {"decoder": {"type": "Newer"}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert "cannot be loaded (" in lines(tmp_path)


def test_a_tokenizer_that_transformers_makes_anew_as_it_is_in_the_file_is_left_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = FAMILIES["Qwen 2, 2.5, 3"]()
    made.save_pretrained(write_config(tmp_path, model_type="qwen2", vocab_size=300))
    loaded = load_tokenizer(str(tmp_path))
    assert isinstance(loaded, Qwen2Tokenizer) and caplog.text == ""
    assert loaded("mwaka 2026")["input_ids"] == made("mwaka 2026")["input_ids"]


@pytest.mark.parametrize("kind", ["xglm", "gemma3_text", "qwen3", "gpt2", "opt", "llama"])
def test_a_folder_without_tokenizer_files_is_one_line_that_says_so(tmp_path: Path, kind: str) -> None:
    write_config(tmp_path, model_type=kind, vocab_size=8192)
    assert "the folder has no tokenizer.json: fetch the tokenizer's files of this model too" in lines(tmp_path)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda content: content["model"].update(type="Unheard"),
        lambda content: content["model"].update(vocab=7),
        lambda content: content.pop("model"),
        lambda content: content.update(normalizer={"type": "Newer"}),
        lambda content: content.update(added_tokens=[{"id": 0}]),
        lambda content: content["model"].update(merges=[["a"]]),
    ],
)
def test_a_tokenizer_file_that_cannot_be_read_is_one_line(
    tokenizer: Path, tmp_path: Path, spoil: Callable[[dict[str, Any]], Any]
) -> None:
    folder = tmp_path / "newer"
    shutil.copytree(tokenizer, folder)
    content = json.loads((folder / "tokenizer.json").read_text())
    spoil(content)
    (folder / "tokenizer.json").write_text(json.dumps(content))
    assert "cannot be loaded (" in lines(folder)


@pytest.mark.parametrize("config", ["[]", "7", '{"tokenizer_class": 3}', '{"eos_token": 3}', "{", '{"auto_map": 3}'])
def test_a_tokenizer_config_of_other_types_is_one_line_or_read(tokenizer: Path, tmp_path: Path, config: str) -> None:
    folder = tmp_path / "typed"
    shutil.copytree(tokenizer, folder)
    (folder / "tokenizer_config.json").write_text(config)
    assert "cannot be loaded (" in lines(folder)


def test_merges_without_the_prefix_that_the_file_names_are_refused_before_the_library_reads_them(
    tokenizer: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tokenizer, tmp_path / "model"))
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"] |= {"continuing_subword_prefix": "##", "merges": [["a", "##b"], ["a", "bc"]]}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    assert "model.merges: 'bc' does not begin with continuing_subword_prefix '##'" in lines(folder)


def test_a_vocabulary_far_below_the_rows_of_the_embedding_is_of_another_model(tokenizer: Path, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    shutil.copytree(tokenizer, folder)
    write_config(folder, model_type="bloom", vocab_size=801)
    assert "knows 400 tokens, and the model's embedding has 801 rows; its files are of another model" in lines(folder)
    write_config(folder, model_type="gemma3", text_config={"vocab_size": 250880})
    assert "knows 400 tokens, and the model's embedding has 250,880 rows" in lines(folder)
    write_config(folder, model_type="bloom", vocab_size=512)
    assert len(load_tokenizer(str(folder))) == 400


def sentencepiece_model() -> bytes:
    """A protocol buffer of pieces, as sentencepiece writes it."""

    def varint(number: int) -> bytes:
        low, rest = number & 127, number >> 7
        return bytes([low | 128]) + varint(rest) if rest else bytes([low])

    def field(number: int, content: bytes) -> bytes:
        return varint(number << 3 | 2) + varint(len(content)) + content

    pieces = [b"<unk>", b"<s>", b"</s>", *(bytes([letter]) for letter in b"abehilory")]
    return b"".join(
        field(1, field(1, piece) + varint(2 << 3 | 5) + struct.pack("<f", -rank)) for rank, piece in enumerate(pieces)
    )


@pytest.mark.parametrize(
    ("kind", "file", "said"),
    [
        ("llama", "tokenizer.model", r"only tokenizer\.model \(of sentencepiece\): pip install sentencepiece, or make"),
        ("gemma3_text", "tokenizer.model", r"\(of sentencepiece\): pip install sentencepiece, or make a tokenizer"),
        # It reads none, with or without the library.
        ("xglm", "sentencepiece.bpe.model", r"vocabulary is empty; .* only sentencepiece\.bpe\.model .*: make a token"),
    ],
)
def test_a_folder_with_a_sentencepiece_model_alone_says_what_to_install_or_to_make(
    tmp_path: Path, kind: str, file: str, said: str
) -> None:
    write_config(tmp_path, model_type=kind)
    (tmp_path / file).write_bytes(sentencepiece_model())
    with pytest.raises(InputError, match=said) as refused:
        load_tokenizer(str(tmp_path))
    assert "tiktoken" not in str(refused.value) and "\n" not in str(refused.value)


def _letters(*special: str) -> dict[str, int]:
    return {piece: number for number, piece in enumerate([*special, "▁", *"1acehilmnorstu"])}


def _bytes(*special: str, begin: str | None = None) -> Tokenizer:
    return byte_level(["the river was high"], list(special), begin)


def _parts(made: Tokenizer) -> dict[str, Any]:
    state = json.loads(made.to_str())["model"]
    return {"vocab": state["vocab"], "merges": [tuple(pair) for pair in state["merges"]]}


END = "<|endoftext|>"
#: A small tokenizer as the published checkpoints of each family have it.
FAMILIES: dict[str, Callable[[], Any]] = {
    "BLOOM": lambda: PreTrainedTokenizerFast(
        tokenizer_object=_bytes("<unk>", "<s>", "</s>"), unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    ),
    "GPT-2": lambda: GPT2Tokenizer(**_parts(_bytes(END))),
    "OPT": lambda: GPT2Tokenizer(
        **_parts(_bytes("</s>")), bos_token="</s>", eos_token="</s>", unk_token="</s>", add_bos_token=True
    ),
    "XGLM": lambda: XGLMTokenizer(vocab=[(piece, -1.0) for piece in _letters("<s>", "<pad>", "</s>", "<unk>")]),
    "Llama 2, Mistral 7B": lambda: LlamaTokenizer(
        vocab=_letters("<unk>", "<s>", "</s>"), merges=[], add_bos_token=True
    ),
    "Llama 3": lambda: PreTrainedTokenizerFast(
        tokenizer_object=_bytes("<|begin_of_text|>", "<|end_of_text|>", begin="<|begin_of_text|>"),
        bos_token="<|begin_of_text|>",
        eos_token="<|end_of_text|>",
    ),
    "Gemma 1, 2, 3": lambda: GemmaTokenizer(
        vocab=_letters("<pad>", "<eos>", "<bos>", "<unk>", "<mask>"), merges=[], add_bos_token=True
    ),
    "Qwen 2, 2.5, 3": lambda: Qwen2Tokenizer(**_parts(_bytes(END))),
}  # fmt: skip


def test_the_table_of_what_each_family_gets_is_what_the_code_finds(tmp_path: Path) -> None:
    rows = ["| family | begins every segment | after each document (`end_token`) | text that the vocabulary lacks |"]
    rows += ["|---|---|---|---|"]
    for number, (family, made) in enumerate(FAMILIES.items()):
        made().save_pretrained(tmp_path / str(number))
        found = DocumentTokenizer(str(tmp_path / str(number)))
        facts = found.facts()

        def names(token: int, of: Any = found.tokenizer) -> str:
            return str(of.convert_ids_to_tokens(token)).replace("|", r"\|")

        (stream,) = found.tokenize([Document("d", "a", 1)])
        begin = " ".join(f"`{names(one)}`" for one in facts.begin) or "nothing"
        after = " ".join(f"`{names(one)}`" for one in stream.token_ids[stream.document_index < 0].tolist())
        unknown = "its bytes" if facts.unknown is None else f"`{names(facts.unknown)}`"
        if facts.unknown is not None and getattr(found.tokenizer.backend_tokenizer.model, "byte_fallback", False):
            unknown = "its bytes"
        rows.append(f"| {family} | {begin} | {after} | {unknown} |")
    assert "\n".join(rows) in DOCS.read_text(encoding="utf-8"), "\n".join(rows)


def test_a_tokenizer_with_more_tokens_than_the_embedding_has_rows_serves_text_without_them(tmp_path: Path) -> None:
    folder = write_config(save_tokenizer(tmp_path / "more"), model_type="bloom", vocab_size=399)
    assert DocumentTokenizer(str(folder)).facts().rows == 399
