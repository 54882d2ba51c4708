"""Tokens of a document: special tokens respected, and bytes that add up."""

import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from mbs_ray.errors import InputError
from mbs_ray.text.shards import Document
from mbs_ray.text.token_bytes import character_bytes, token_bytes
from mbs_ray.text.tokenization import DocumentTokenizer
from tests.support.examples import examples
from tests.support.texts import some_texts
from tests.text.conftest import save_tokenizer

HARD = ["नदी चढ़ी 😀😀👩‍👩‍👧", "  two  spaces \n\n", "河水很高", "é́ \u200d \U0001f1eb\U0001f1f7", "\x00\x7f"]


def documents(texts: list[str]) -> list[Document]:
    return [Document(f"doc#{row}", text, len(text.encode())) for row, text in enumerate(texts)]


@pytest.fixture(scope="module")
def plain(tokenizer: Path) -> DocumentTokenizer:
    return DocumentTokenizer(str(tokenizer))


@examples(150)
@given(text=st.text(min_size=1))
def test_bytes_add_up_for_any_text(plain: DocumentTokenizer, text: str) -> None:
    (stream,) = plain.tokenize(documents([text]))
    assert int(stream.bytes.sum()) == len(unicodedata.normalize("NFC", text).encode())


@pytest.mark.parametrize("text", [*HARD, *some_texts("hi", 3), *some_texts("zh-Hans", 3)])
def test_each_token_is_given_the_bytes_that_byte_level_tokens_are_made_of(plain: DocumentTokenizer, text: str) -> None:
    """Byte-level tokens are whole bytes; a character's bytes all count for the first token that reaches into it."""
    (stream,) = plain.tokenize(documents([text]))
    lengths = [len(token) for token in plain.tokenizer.convert_ids_to_tokens(stream.token_ids[:-1].tolist())]
    characters = np.repeat(np.arange(len(text)), [len(character.encode()) for character in text])
    reached = np.cumsum(lengths)
    begun = [
        0 if stop == 0 else int(np.searchsorted(characters, characters[stop - 1], side="right")) for stop in reached
    ]
    assert stream.bytes[:-1].tolist() == np.diff([0, *begun]).tolist()


def test_a_separator_follows_each_document_and_stands_for_no_text(plain: DocumentTokenizer) -> None:
    for stream in plain.tokenize(documents(some_texts("en", 5))):
        assert stream.token_ids[-1] == plain.tokenizer.eos_token_id
        assert (stream.document_index[-1], stream.bytes[-1]) == (-1, 0)
        assert (stream.document_index[:-1] == 0).all()


def test_what_a_tokenizer_puts_before_a_text_is_no_part_of_a_document_and_what_it_puts_after_is(
    beginning_tokenizer: Path, tokenizer: Path, tmp_path: Path
) -> None:
    own, text = DocumentTokenizer(str(beginning_tokenizer)), some_texts("sw", 1)[0]
    (stream,) = own.tokenize(documents([text]))
    assert own.begin == (own.tokenizer.bos_token_id,) and DocumentTokenizer(str(tokenizer)).begin == ()
    assert [*own.begin, *stream.token_ids] == [*own.tokenizer(text)["input_ids"], own.tokenizer.eos_token_id]
    assert int(stream.bytes.sum()) == len(text.encode())
    between = save_tokenizer(tmp_path, template="<s> </s> $A <s>")
    (stream,) = DocumentTokenizer(str(between)).tokenize(documents([text]))
    assert DocumentTokenizer(str(between)).begin == (0, 1) and stream.token_ids[-2:].tolist() == [0, 1]
    assert stream.document_index[-2:].tolist() == [-1, -1]


def test_text_that_the_library_cannot_tokenize_is_one_line(tmp_path: Path) -> None:
    lacking = Tokenizer(models.WordLevel({"mto": 0, "<s>": 1}, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=lacking).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"cannot tokenize doc#0 or what follows \(.*WordLevel error"):
        DocumentTokenizer(str(tmp_path)).tokenize(documents(["mto ulikuwa"]))


NFC = [
    *("é", "e\u0301", "e\u0301\u0323x", "\u1112\u1161\u11ab글", "\u0344a", "\u0f73", "\u0301a", "q\u0323\u0307"),
    *("क़", "\u0958", "\u30cf\u309a\u30cf", "\u212b\u2126", "\u09c7\u09be", "a\u035c\u0315\u0300\u05ae\u0062"),
]


@pytest.mark.parametrize("text", [*NFC, "".join(NFC)])
def test_bytes_of_characters_add_up_to_those_of_nfc_and_are_as_ever_in_nfc(text: str) -> None:
    composed = unicodedata.normalize("NFC", text)
    assert int(character_bytes(text).sum()) == len(composed.encode())
    assert character_bytes(composed).tolist() == [len(one.encode()) for one in composed]
    # Wherever a text is cut between words, its parts have the bytes that they have in it.
    word = character_bytes(f"x{text}").tolist()
    assert character_bytes(f"x{text} x{text}").tolist() == [*word, 1, *word]


@examples(300)
@given(text=st.text())
def test_bytes_of_any_text_are_those_of_nfc(text: str) -> None:
    assert int(character_bytes(text).sum()) == len(unicodedata.normalize("NFC", text).encode())
    decomposed = unicodedata.normalize("NFD", text)
    assert int(character_bytes(decomposed).sum()) == len(unicodedata.normalize("NFC", text).encode())


def test_a_decomposed_text_has_the_bytes_of_the_composed_one_in_both_joins(plain: DocumentTokenizer) -> None:
    composed = [unicodedata.normalize("NFC", text) for text in ("năm ấy nước sông", "\u0301 la", "nhà ở")]
    for tokenizer in (plain, DocumentTokenizer(plain.tokenizer.name_or_path, "blank_line")):
        one, other = (
            tokenizer.tokenize(documents([unicodedata.normalize(form, text) for text in composed]))
            for form in ("NFC", "NFD")
        )
        assert [int(stream.bytes.sum()) for stream in one] == [int(stream.bytes.sum()) for stream in other]
        assert [stream.sources[0].composed for stream in (*one, *other)] == [True] * 3 + [False, True, False]
        assert sum(map(len, other)) > sum(map(len, one))


def test_no_separator_is_made_up_for_a_tokenizer_without_one(endless_tokenizer: Path) -> None:
    own = DocumentTokenizer(str(endless_tokenizer))
    (stream,) = own.tokenize(documents(["mto ulikuwa"]))
    assert stream.token_ids.tolist() == own.tokenizer("mto ulikuwa")["input_ids"]


def test_a_document_without_tokens_of_text_gives_nothing(plain: DocumentTokenizer) -> None:
    empty, full = plain.tokenize(documents(["", "mto"]))
    assert len(empty) == 0 and len(full) > 1


def test_bytes_telescope_over_shared_characters_gaps_and_a_skipped_end() -> None:
    # Ends: two tokens share the 3-byte character, a space belongs to no token, the last character to none.
    assert token_bytes(character_bytes("河 ab "), np.array([1, 1, 3, 4])).tolist() == [3, 0, 2, 2]
    assert token_bytes(character_bytes("a😀b"), np.array([2, 1, 3])).tolist() == [5, 0, 1]


def test_a_tokenizer_that_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be loaded") as error:
        DocumentTokenizer(str(tmp_path))
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_a_digest_tells_tokenizers_apart(tokenizer: Path, beginning_tokenizer: Path, endless_tokenizer: Path) -> None:
    names = [tokenizer, beginning_tokenizer, endless_tokenizer]
    assert len({DocumentTokenizer(str(name)).facts().digest for name in names}) == 3
    assert DocumentTokenizer(str(tokenizer)).facts().digest == DocumentTokenizer(str(tokenizer)).facts().digest
