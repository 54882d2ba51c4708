"""Conversations through a tokenizer's chat template: the rendered text, its tokens, and their bytes of contents.

What the template itself writes (headers, ends of turns) is markup: it is read by the model as separators are, belongs
to no document and stands for no bytes. Which characters are contents is found by rendering a second time, with a mark
before and after each.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from mbs_ray.errors import InputError
from mbs_ray.text.conversations import Message, messages_in
from mbs_ray.text.shards import Document, Source
from mbs_ray.text.token_bytes import character_bytes, checked, token_bytes
from mbs_ray.text.token_stream import TokenStream
from mbs_ray.text.tokenizer_files import as_input_error

#: What templates are told of today, so that tomorrow the same text has the same tokens: Llama's own default.
TODAY = datetime(2024, 7, 26)
_CODES = "aAbBdeIjmMpHSyY"
#: Code points that are no characters, so that no text has them.
_MARKS = tuple(map(chr, range(0xFDD0, 0xFDF0)))


class ChatTemplate:
    """The chat template of a tokenizer, rendered by transformers. InputError where it has none."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._name = f"tokenizer {tokenizer.name_or_path}"
        if not tokenizer.chat_template:
            raise InputError(
                f"{self._name}: has no chat template, which a chat corpus goes through; take the instruction-tuned "
                "model's files, put a chat_template.jinja beside them, or leave the corpus' field 'chat' out"
            )
        with as_input_error(f"{self._name}: its chat template cannot be taken"):
            self._template = _of_one_day(tokenizer.get_chat_template())

    @property
    def digest(self) -> str:
        """Hex SHA-256 of the template and of the special tokens that it may write."""
        told = [self._template, dict(self._tokenizer.special_tokens_map)]
        return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()

    def render(self, messages: Sequence[Message], label: str) -> str:
        """Return the conversation as the template writes it. InputError naming `label` where it refuses to."""
        with as_input_error(f"{label}: the chat template of {self._name} does not take the conversation"):
            rendered: str = self._tokenizer.apply_chat_template(
                [message._asdict() for message in messages], chat_template=self._template, tokenize=False
            )
        return rendered

    def streams(self, documents: Sequence[Document], begin: Sequence[int]) -> list[TokenStream]:
        """Tokenize each conversation as it is rendered, without the ids `begin` where it begins with them.

        A token with a character of a content belongs to the document and stands for the bytes of its contents.
        """
        rendered = [self._rendered(document) for document in documents]
        encoded = self._tokenizer(
            [text for text, _ in rendered],
            add_special_tokens=False,
            truncation=False,
            padding=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            return_offsets_mapping=True,
        )
        found = zip(documents, rendered, encoded["input_ids"], encoded["offset_mapping"], strict=True)
        return [
            _without(begin, _stream(document, text, spans, token_ids, offsets))
            for document, (text, spans), token_ids, offsets in found
        ]

    def _rendered(self, document: Document) -> tuple[str, list[slice]]:
        """Return the rendered text, and where in it contents stand."""
        messages = messages_in(document.text)
        text = self.render(messages, document.label)
        free = [mark for mark in _MARKS if mark not in text and mark not in document.text]
        if len(free) < 2:
            raise InputError(f"{document.label}: holds code points from U+FDD0 on, by which contents are found")
        contents = {message.content for message in messages} | {message.content.strip() for message in messages}
        for outer in _markings(messages):
            marked = [_marked(message, free[0], free[1], own) for message, own in zip(messages, outer, strict=True)]
            with_marks = self._try(marked, document.label)
            if with_marks is None or with_marks.replace(free[0], "").replace(free[1], "") != text:
                continue
            spans = _spans(with_marks, free[0], free[1])
            if spans is not None and all(text[span] in contents for span in spans):
                return text, spans
        raise InputError(
            f"{document.label}: the chat template of {self._name} changes the contents of messages, so that their "
            "bytes cannot be counted; leave such conversations out"
        )

    def _try(self, messages: Sequence[Message], label: str) -> str | None:
        try:
            return self.render(messages, label)
        except InputError:  # a template that looks into contents may refuse the marks
            return None


def _of_one_day(template: str) -> str:
    """Return the template with a clock that stands still, where it asks for the day."""
    if "strftime_now" not in template:
        return template
    # transformers hands no function of ours to a template. The line feed after the macro belongs to it.
    told = "".join(f" | replace('%{code}', '{TODAY.strftime(f'%{code}')}')" for code in _CODES)
    return f"{{% macro strftime_now(format) %}}{{{{ format{told} }}}}{{% endmacro %}}\n{template}"


def _markings(messages: Sequence[Message]) -> Iterator[list[bool]]:
    """Yield, for each message, whether the marks stand around its white space too: templates mostly keep or trim it.

    First all around it, then each alone, then none.
    """
    padded = [message.content != message.content.strip() for message in messages]
    yield padded
    if any(padded):
        roles = {message.role for message in messages}
        for role in sorted(roles):
            yield [own and message.role == role for own, message in zip(padded, messages, strict=True)]
            yield [own and message.role != role for own, message in zip(padded, messages, strict=True)]
        yield [False] * len(messages)


def _marked(message: Message, first: str, last: str, outer: bool) -> Message:
    content = message.content
    inner = content if outer else content.strip()
    if not inner:
        return message
    before, _, after = content.partition(inner)
    return Message(message.role, f"{before}{first}{inner}{last}{after}")


def _spans(marked: str, first: str, last: str) -> list[slice] | None:
    """Return where the marked parts stand in the text without marks; None where marks do not come in pairs."""
    spans, length = [], 0
    head, *parts = marked.split(first)
    if last in head:
        return None
    length = len(head)
    for part in parts:
        inside, *outside = part.split(last)
        if len(outside) != 1:
            return None
        spans.append(slice(length, length + len(inside)))
        length += len(inside) + len(outside[0])
    return spans


def _stream(
    document: Document, text: str, spans: Sequence[slice], token_ids: list[int], offsets: list[tuple[int, int]]
) -> TokenStream:
    contents = "\n".join(message.content for message in messages_in(document.text))
    source = (Source.of(document._replace(text=contents)),)
    if not token_ids:
        nothing = np.empty(0, np.int32)
        return TokenStream(nothing, nothing, nothing, source)
    weights, of_content = np.zeros(len(text), np.int64), np.zeros(len(text), np.int64)
    for span in spans:
        weights[span], of_content[span] = character_bytes(text[span]), 1
    ends = np.asarray(offsets, np.int64).reshape(-1, 2)[:, 1]
    sizes = checked(token_bytes(weights, ends), document.label)
    return TokenStream(np.asarray(token_ids, np.int32), _index(of_content, ends), sizes, source)


def _index(of_content: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
    """Return 0 for tokens with a character of a content, -1 for markup."""
    reached = np.maximum.accumulate(ends)
    # A token that adds no character to those before it shares the last one.
    first = np.minimum(np.concatenate([[0], reached[:-1]]), np.maximum(reached - 1, 0))
    before = np.concatenate([[0], np.cumsum(of_content)])
    return np.where(before[reached] > before[first], 0, -1).astype(np.int32)


def _without(begin: Sequence[int], stream: TokenStream) -> TokenStream:
    begun = len(begin) and stream.token_ids[: len(begin)].tolist() == list(begin)
    return stream.cut(len(begin), None) if begun else stream
