"""Conversations through the chat templates of tokenizers: transformers' own text and tokens, bytes of contents."""

import re
import unicodedata
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mbs_ray.errors import InputError
from mbs_ray.text.chat_template import TODAY, ChatTemplate
from mbs_ray.text.conversations import Chat, Message, conversation_text
from mbs_ray.text.shards import Document
from mbs_ray.text.tokenization import DocumentTokenizer
from tests.support.chats import CHATML, TEMPLATES, some_chats, with_template

CONTENTS = st.text(st.characters(exclude_categories=["Cs", "Cn"]), max_size=20)


@pytest.fixture(scope="module")
def folders(beginning_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("chat-tokenizers")
    return {name: with_template(beginning_tokenizer, folder / name, one) for name, one in TEMPLATES.items()}


@pytest.fixture(scope="module")
def tokenizers(folders: dict[str, Path]) -> dict[str, DocumentTokenizer]:
    return {name: DocumentTokenizer(str(folder), chat="one_per_segment") for name, folder in folders.items()}


def document(chat: object) -> Document:
    found = conversation_text(chat, "messages")
    assert found is not None
    return Document("en.jsonl#0", *found)


def altered(folder: Path, beginning_tokenizer: Path, template: str) -> DocumentTokenizer:
    return DocumentTokenizer(str(with_template(beginning_tokenizer, folder, template)), chat="packed")


@pytest.mark.parametrize("style", TEMPLATES)
def test_rendered_text_and_tokens_are_those_of_transformers(
    tokenizers: dict[str, DocumentTokenizer], style: str
) -> None:
    ours = tokenizers[style]
    template = ChatTemplate(ours.tokenizer)
    for chat in some_chats("hi", 9):
        expected = ours.tokenizer.apply_chat_template(chat, tokenize=False)
        ids = ours.tokenizer.apply_chat_template(chat, return_dict=False)
        if style == "headers":
            expected = re.sub(r"Day: .*\n", f"Day: {TODAY:%d %b %Y}\n", expected)
            ids = ours.tokenizer(expected, add_special_tokens=False)["input_ids"]
        assert template.render([Message(**message) for message in chat], "x") == expected
        (stream,) = ours.tokenize([document(chat)])
        assert stream.token_ids.tolist() == ids


def test_the_day_is_always_the_same(tokenizers: dict[str, DocumentTokenizer]) -> None:
    text = ChatTemplate(tokenizers["headers"].tokenizer).render([Message("user", "mto")], "x")
    assert text.startswith("<s>Day: 26 Jul 2024\n") and datetime.now().year > 2024


@pytest.mark.parametrize("style", TEMPLATES)
@given(contents=st.tuples(CONTENTS, CONTENTS, CONTENTS))
def test_bytes_are_those_of_the_contents(
    tokenizers: dict[str, DocumentTokenizer], style: str, contents: tuple[str, str, str]
) -> None:
    roles = ("system", "user", "assistant")
    chat = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]
    (stream,) = tokenizers[style].tokenize([document(chat)])
    trims = style != "chatml"
    shown = [content.strip() if trims else content for content in contents]
    assert int(stream.bytes.sum()) == sum(len(unicodedata.normalize("NFC", one).encode()) for one in shown)
    assert (stream.bytes[stream.document_index < 0] == 0).all()


@pytest.mark.parametrize("style", TEMPLATES)
def test_markup_belongs_to_no_document(tokenizers: dict[str, DocumentTokenizer], style: str) -> None:
    chat = some_chats("sw", 2)[1]
    (stream,) = tokenizers[style].tokenize([document(chat)])
    own = stream.token_ids[stream.document_index == 0]
    assert tokenizers[style].tokenizer.decode(own) == "".join(message["content"] for message in chat)
    assert stream.sources[0].beginning == " ".join(chat[0]["content"].split())[:60]


def test_words_of_the_markup_in_a_content_are_content(tokenizers: dict[str, DocumentTokenizer]) -> None:
    chat = [{"role": "user", "content": "user"}, {"role": "assistant", "content": "user\nuser"}]
    (stream,) = tokenizers["chatml"].tokenize([document(chat)])
    assert int(stream.bytes.sum()) == 13


def test_a_template_that_looks_whether_there_is_a_content_sees_an_empty_one(
    tmp_path: Path, beginning_tokenizer: Path
) -> None:
    template = "{% for m in messages %}<turn>{{ m.content if m.content else 'nothing' }}</turn>{% endfor %}"
    (stream,) = altered(tmp_path, beginning_tokenizer, template).tokenize(
        [document([{"role": "user", "content": ""}, {"role": "assistant", "content": "mto"}])]
    )
    assert int(stream.bytes.sum()) == 3


@pytest.mark.parametrize("style", ["headers", "turns"])
@pytest.mark.parametrize(("chat", "begins"), [("packed", False), ("one_per_segment", True)])
def test_packed_conversations_leave_the_begin_token_to_the_segments(
    folders: dict[str, Path], style: str, chat: Chat, begins: bool
) -> None:
    tokenizer = DocumentTokenizer(str(folders[style]), chat=chat)
    (stream,) = tokenizer.tokenize([document(some_chats("en", 2)[1])])
    assert (stream.token_ids[0] == 0) == begins and 0 not in stream.token_ids[1:]


def test_what_cannot_be_rendered_or_counted_is_refused_by_its_row(
    tokenizers: dict[str, DocumentTokenizer], tmp_path: Path, beginning_tokenizer: Path
) -> None:
    twice = [{"role": "user", "content": "mto"}] * 2
    with pytest.raises(InputError, match=r"en.jsonl#0: the chat template .* \(user and assistant must take turns\)"):
        tokenizers["turns"].tokenize([document(twice)])
    loud = "{% for m in messages %}{{ m.content | upper }}{% endfor %}"
    with pytest.raises(InputError, match=r"en.jsonl#0: .* changes the contents of messages"):
        altered(tmp_path / "loud", beginning_tokenizer, loud).tokenize([document(twice)])
    marks = "".join(map(chr, range(0xFDD0, 0xFDF0)))
    with pytest.raises(InputError, match="holds code points from U\\+FDD0 on"):
        tokenizers["chatml"].tokenize([document([{"role": "user", "content": marks}])])


def test_a_template_does_no_more_than_render(tmp_path: Path, beginning_tokenizer: Path) -> None:
    template = "{{ messages.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(InputError, match="does not take the conversation"):
        altered(tmp_path, beginning_tokenizer, template).tokenize([document([{"role": "user", "content": "x"}])])


def test_without_a_template_there_is_one_clear_error(beginning_tokenizer: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no chat template, which a chat corpus goes through; take"):
        DocumentTokenizer(str(beginning_tokenizer), chat="packed")
    several = with_template(beginning_tokenizer, tmp_path / "several", CHATML)
    (several / "chat_template.jinja").unlink()
    (several / "additional_chat_templates").mkdir()
    (several / "additional_chat_templates" / "tools.jinja").write_text(CHATML)
    with pytest.raises(InputError, match="chat template"):
        DocumentTokenizer(str(several), chat="packed")
