"""Tokens of a document: special tokens respected, and bytes that add up."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mbs_ray.errors import InputError
from mbs_ray.text.shards import Document
from mbs_ray.text.token_bytes import character_bytes, token_bytes
from mbs_ray.text.tokenization import DocumentTokenizer
from tests.support.examples import examples
from tests.support.texts import some_texts

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
    assert int(stream.bytes.sum()) == len(text.encode())


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


def test_the_tokenizers_own_template_is_respected(beginning_tokenizer: Path) -> None:
    own = DocumentTokenizer(str(beginning_tokenizer))
    text = some_texts("sw", 1)[0]
    (stream,) = own.tokenize(documents([text]))
    assert stream.token_ids.tolist() == [*own.tokenizer(text)["input_ids"], own.tokenizer.eos_token_id]
    assert stream.token_ids[0] == own.tokenizer.bos_token_id
    assert (stream.document_index[0], stream.bytes[0]) == (-1, 0)
    assert int(stream.bytes.sum()) == len(text.encode())


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
    assert len({DocumentTokenizer(str(name)).digest() for name in names}) == 3
    assert DocumentTokenizer(str(tokenizer)).digest() == DocumentTokenizer(str(tokenizer)).digest()
