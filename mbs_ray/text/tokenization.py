"""From a document's text to its tokens, each with the bytes of text it stands for."""

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from mbs_ray.errors import InputError
from mbs_ray.text.blank_lines import blank_line_streams
from mbs_ray.text.chat_template import ChatTemplate
from mbs_ray.text.conversations import Chat
from mbs_ray.text.shards import Document, Source
from mbs_ray.text.token_bytes import character_bytes, checked, token_bytes
from mbs_ray.text.token_stream import TokenStream
from mbs_ray.text.tokenizer_files import as_input_error, embedding_rows, load_tokenizer

Join = Literal["end_token", "blank_line"]

_PROBE = "1 a"


class TokenizerFacts(NamedTuple):
    """What a set of segments depends on besides the text's own tokens.

    ``digest``: hex SHA-256 of all that determines them; ``begin``: ids that the tokenizer puts before a text, mostly
    one or none; ``unknown``: the id of text that the vocabulary lacks, None where it lacks none; ``rows``: of the
    model's embedding, None where the folder does not say.
    """

    digest: str
    begin: tuple[int, ...]
    unknown: int | None
    rows: int | None


class DocumentTokenizer:
    """A model's fast tokenizer. `name` is a directory or a hub id. InputError if it cannot be loaded.

    `join` says what stands between documents: the model's end token after each, or a blank line, in the paper's manner.
    With `chat` documents are conversations, and go through the tokenizer's chat template; InputError without one.
    """

    def __init__(self, name: str, join: Join = "end_token", chat: Chat | None = None) -> None:
        self._join = join
        self._name = name
        # Without a maximum length no warning is given for a document longer than the model's.
        self.tokenizer: Any = load_tokenizer(name, model_max_length=2**40)
        self.chat = chat
        self.template = None if chat is None else ChatTemplate(self.tokenizer)

    def facts(self) -> TokenizerFacts:
        definition = self.tokenizer.backend_tokenizer.to_str()
        digest = hashlib.sha256(f"{definition}\n{self.tokenizer.eos_token_id}".encode()).hexdigest()
        return TokenizerFacts(digest, self.begin, self._unknown(), embedding_rows(Path(self._name)))

    @property
    def begin(self) -> tuple[int, ...]:
        """Ids that the tokenizer puts before a text: at the head of each segment, and nowhere else."""
        return self._added[0]

    def tokenize(self, documents: Sequence[Document]) -> list[TokenStream]:
        """Return the tokens of each document and of the separator after it, without what :attr:`begin` names.

        Joined by the end token, each ends with what the tokenizer puts after a text and with the end token; the bytes
        add up exactly to the document's in NFC. By a blank line, see :func:`blank_line_streams`. A document without a
        token of text gives an empty stream. A conversation has the tokens of its rendered text, nothing after it; one
        that fills a segment of its own begins as the template begins it.
        """
        if not documents:
            return []
        where = f"tokenizer {self.tokenizer.name_or_path}: cannot tokenize {documents[0].label} or what follows"
        with as_input_error(where):
            if self.template is not None:
                return self.template.streams(documents, () if self.chat == "one_per_segment" else self.begin)
            if self._join == "blank_line":
                return blank_line_streams(self.tokenizer, documents)
            encoded = self.tokenizer(
                [document.text for document in documents],
                add_special_tokens=False,
                truncation=False,
                padding=False,
                return_attention_mask=False,
                return_token_type_ids=False,
                return_offsets_mapping=True,
            )
        return [
            self._stream(document, token_ids, offsets)
            for document, token_ids, offsets in zip(
                documents, encoded["input_ids"], encoded["offset_mapping"], strict=True
            )
        ]

    def _stream(self, document: Document, token_ids: list[int], offsets: list[tuple[int, int]]) -> TokenStream:
        source = (Source.of(document),)
        if not token_ids:
            nothing = np.empty(0, np.int32)
            return TokenStream(nothing, nothing, nothing, source)
        ends = np.asarray(offsets, dtype=np.int64).reshape(-1, 2)[:, 1]
        sizes = checked(token_bytes(character_bytes(document.text), ends), document.label)
        after = list(self._added[1])
        end = self.tokenizer.eos_token_id
        if end is not None and [*token_ids, *after][-1] != end:
            after.append(end)
        nothing = np.zeros(len(after), np.int32)
        return TokenStream(
            np.asarray([*token_ids, *after], np.int32),
            np.concatenate([np.zeros(len(token_ids), np.int32), nothing - 1]),
            np.concatenate([sizes, nothing]),
            source,
        )

    @cached_property
    def _added(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """What the tokenizer itself adds before and after a text: it is asked, whatever family it is of."""
        with as_input_error(f"tokenizer {self.tokenizer.name_or_path}: cannot tokenize a text"):
            text = self.tokenizer(_PROBE, add_special_tokens=False)["input_ids"]
            whole = self.tokenizer(_PROBE)["input_ids"]
        for start in range(len(whole) - len(text) + 1):
            if whole[start : start + len(text)] == text:
                return tuple(whole[:start]), tuple(whole[start + len(text) :])
        raise InputError(
            f"tokenizer {self.tokenizer.name_or_path}: makes other tokens of a text where it adds special ones"
        )

    def _unknown(self) -> int | None:
        model = self.tokenizer.backend_tokenizer.model
        # A Unigram model names none of its own.
        token = getattr(model, "unk_token", self.tokenizer.unk_token)
        found: int | None = None if token is None else model.token_to_id(token)
        return found
