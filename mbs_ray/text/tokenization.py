"""From a document's text to its tokens, each with the bytes of text it stands for."""

import hashlib
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from mbs_ray.errors import InputError, one_line
from mbs_ray.text.blank_lines import blank_line_streams
from mbs_ray.text.shards import Document, Source
from mbs_ray.text.token_bytes import character_bytes, checked, token_bytes
from mbs_ray.text.token_stream import TokenStream

Join = Literal["end_token", "blank_line"]


class DocumentTokenizer:
    """A model's fast tokenizer. `name` is a directory or a hub id. InputError if it cannot be loaded.

    `join` says what stands between documents: the model's end token after each, or a blank line, in the paper's manner.
    """

    def __init__(self, name: str, join: Join = "end_token") -> None:
        from transformers import AutoTokenizer  # slow to import, and only needed where text is tokenized

        self._join = join
        try:
            # Without a maximum length no warning is given for a document longer than the model's.
            self.tokenizer: Any = AutoTokenizer.from_pretrained(name, model_max_length=2**40)
        except Exception as error:  # the libraries raise what the files make them raise, a plain Exception too
            raise InputError(f"tokenizer {name}: cannot be loaded ({one_line(error)})") from None
        if not self.tokenizer.is_fast:
            raise InputError(f"tokenizer {name}: has no tokenizer.json, whose offsets are needed to count bytes")

    def digest(self) -> str:
        """Hex SHA-256 of all that determines the tokens."""
        definition = self.tokenizer.backend_tokenizer.to_str()
        return hashlib.sha256(f"{definition}\n{self.tokenizer.eos_token_id}".encode()).hexdigest()

    def tokenize(self, documents: Sequence[Document]) -> list[TokenStream]:
        """The tokens of each document and of the separator after it.

        Joined by the end token, each has the tokenizer's special tokens; the bytes add up exactly to the document's. By
        a blank line, see :func:`blank_line_streams`. A document without a token of text gives an empty stream.
        """
        if not documents:
            return []
        if self._join == "blank_line":
            return blank_line_streams(self.tokenizer, documents)
        encoded = self.tokenizer(
            [document.text for document in documents],
            truncation=False,
            padding=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
        )
        return [
            self._stream(document, *columns)
            for document, *columns in zip(
                documents,
                encoded["input_ids"],
                encoded["offset_mapping"],
                encoded["special_tokens_mask"],
                strict=True,
            )
        ]

    def _stream(
        self,
        document: Document,
        token_ids: list[int],
        offsets: list[tuple[int, int]],
        special: list[int],
    ) -> TokenStream:
        of_text = np.asarray(special, dtype=np.int64) == 0
        if not of_text.any():
            nothing = np.empty(0, np.int32)
            return TokenStream(nothing, nothing, nothing, (Source.of(document),))
        ends = np.asarray(offsets, dtype=np.int64).reshape(-1, 2)[of_text, 1]
        sizes = checked(token_bytes(character_bytes(document.text), ends), document.label)
        if self.tokenizer.eos_token_id is not None and token_ids[-1] != self.tokenizer.eos_token_id:
            token_ids = [*token_ids, self.tokenizer.eos_token_id]
            of_text = np.append(of_text, False)
        counted = np.zeros(len(token_ids), np.int32)
        counted[of_text] = sizes
        index = np.where(of_text, 0, -1).astype(np.int32)
        return TokenStream(np.asarray(token_ids, np.int32), index, counted, (Source.of(document),))
