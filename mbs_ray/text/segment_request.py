"""What is asked of a corpus: languages, allocation, lengths, seed; its fingerprint names the file of segments."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from mbs_ray.errors import InputError
from mbs_ray.text.bytes_per_token import bytes_per_token
from mbs_ray.text.conversations import Chat
from mbs_ray.text.corpus import Corpus, Location, OpenedCorpora, parse_location
from mbs_ray.text.tokenization import DocumentTokenizer, Join, TokenizerFacts

# Raise it with any change that draws other tokens from the same request.
FORMAT = 2
# The same for all text in its order, which no drawing changes.
WHOLE_TEXT_FORMAT = 1


class TextSources:
    """The corpora and tokenizers of a command, each opened once, however many requests read it.

    What was found of the corpora's files is kept under `cache` for the next command.
    """

    def __init__(self, cache: Path | None = None) -> None:
        self.corpora = OpenedCorpora(cache)
        self._tokenizer_facts: dict[str, TokenizerFacts] = {}
        self._template_digests: dict[str, str] = {}
        self._bytes_per_token: dict[tuple[str, str], dict[str, float]] = {}

    def bytes_per_token(self, corpus: Location, tokenizer: str, languages: Sequence[str]) -> dict[str, float]:
        """Measure :func:`~mbs_ray.text.bytes_per_token.bytes_per_token` of each language, once for each."""
        key = repr(corpus), tokenizer
        known = self._bytes_per_token.setdefault(key, {})
        missing = [language for language in languages if language not in known]
        if missing:
            through = DocumentTokenizer(tokenizer, chat=parse_location(corpus).chat)
            opened = self.corpora.open(corpus, missing)
            known.update({language: bytes_per_token(opened, language, through) for language in missing})
        return {language: known[language] for language in languages}

    def tokenizer_facts(self, tokenizer: str) -> TokenizerFacts:
        if tokenizer not in self._tokenizer_facts:
            self._tokenizer_facts[tokenizer] = DocumentTokenizer(tokenizer).facts()
        return self._tokenizer_facts[tokenizer]

    def template_digest(self, tokenizer: str) -> str:
        """Return the digest of the tokenizer's chat template. InputError where it has none."""
        if tokenizer not in self._template_digests:
            template = DocumentTokenizer(tokenizer, chat="packed").template
            assert template is not None
            self._template_digests[tokenizer] = template.digest
        return self._template_digests[tokenizer]


@dataclass(frozen=True)
class SegmentRequest:
    """Segments wanted of each language, from a corpus (what `parse_location` takes) through a tokenizer.

    With an `allocation` exactly so many are drawn, at random places of the whole text by (seed, language), each token
    of it as likely as any other; `allow_repeat` lets windows overlap where it is too short. Without one, at most
    `at_most` of each language are drawn in that way, or, where that is None, all the text is taken in its own order.
    `tokenizer` is a directory or a hub id; `join` is what stands between documents. InputError for a field that makes
    no sense.
    """

    corpus: Location
    tokenizer: str
    languages: Sequence[str]
    allocation: Mapping[str, int] | None
    sequence_length: int
    seed: int = 0
    allow_repeat: bool = False
    at_most: int | None = None
    join: Join = "end_token"
    sources: TextSources | None = field(default=None, compare=False, repr=False)
    """Where corpus and tokenizer are open already, or will be for the next request."""

    def __post_init__(self) -> None:
        if self.sequence_length < 2:
            raise InputError(f"sequence length {self.sequence_length}: a segment needs at least 2 tokens")
        if self.seed < 0:
            raise InputError(f"seed {self.seed}: must not be negative")
        if not self.languages:
            raise InputError("no language to take segments of")
        if self.at_most is not None and self.at_most < 1:
            raise InputError(f"{self.at_most} segments per language: must be at least 1")
        if self.join != "end_token" and self.chat is not None:
            raise InputError(f"join {self.join}: a chat template says what stands between conversations; leave it out")
        if self.allocation is None:
            return
        if set(self.allocation) != set(self.languages):
            raise InputError(
                f"the allocation is for {', '.join(self.allocation)}, the languages are {', '.join(self.languages)}"
            )
        for language, segments in self.allocation.items():
            if segments < 1:
                raise InputError(f"language {language!r}: {segments} segments, must be at least 1")

    @cached_property
    def opened(self) -> Corpus:
        """The corpus, opened once for this request. InputError for what is missing or broken."""
        corpora = OpenedCorpora() if self.sources is None else self.sources.corpora
        return corpora.open(self.corpus, self.languages)

    @cached_property
    def tokenizer_facts(self) -> TokenizerFacts:
        """Of the tokenizer, loaded once for this request."""
        return (self.sources or TextSources()).tokenizer_facts(self.tokenizer)

    @property
    def chat(self) -> Chat | None:
        """How the corpus' conversations become segments; None where it holds plain text."""
        return parse_location(self.corpus).chat

    @cached_property
    def template_digest(self) -> str | None:
        """Of the chat template that a chat corpus goes through. InputError where the tokenizer has none."""
        return None if self.chat is None else (self.sources or TextSources()).template_digest(self.tokenizer)

    @property
    def begin(self) -> tuple[int, ...]:
        """Ids that are put before every segment; none where each is a conversation, which its template begins."""
        return () if self.chat == "one_per_segment" else self.tokenizer_facts.begin

    @property
    def text_length(self) -> int:
        """Tokens of a segment that are drawn; before them stand those with which the tokenizer begins a text.

        InputError where there is no room for any.
        """
        begin = self.begin
        if self.sequence_length <= len(begin):
            raise InputError(
                f"sequence length {self.sequence_length}: the tokenizer begins every segment with {len(begin)} tokens"
            )
        return self.sequence_length - len(begin)

    def for_language(self, language: str) -> "SegmentRequest":
        """Return the same for one language of the allocation, whose segments do not depend on the others."""
        assert self.allocation is not None
        one = replace(self, languages=(language,), allocation={language: self.allocation[language]})
        # What is open already is not opened again for each language.
        one.__dict__["opened"] = Corpus({language: self.opened.shards[language]})
        one.__dict__["tokenizer_facts"] = self.tokenizer_facts
        one.__dict__["template_digest"] = self.template_digest
        return one

    @cached_property
    def fingerprint(self) -> str:
        """Hex SHA-256 of all that determines the segments."""
        drawn = self.allocation is not None or self.at_most is not None
        # First of all: a tokenizer without a template is told of before any file is read.
        template = self.template_digest
        determining = {
            "format": FORMAT if drawn else WHOLE_TEXT_FORMAT,
            "corpus": self.opened.identity,
            "tokenizer": self.tokenizer_facts.digest,
            "allocation": None if self.allocation is None else dict(self.allocation),
            "at_most": self.at_most if self.allocation is None else None,
            "sequence_length": self.sequence_length,
            "seed": self.seed if drawn else None,
            "allow_repeat": self.allow_repeat if self.allocation is not None else None,
            # Not named where it is as it always was, so that what was drawn then is found again.
            **({} if self.join == "end_token" else {"join": self.join}),
            **({} if (column := parse_location(self.corpus).text_column) == "text" else {"text_column": column}),
            # Likewise: most tokenizers begin a text with nothing.
            **({"begin": begin} if (begin := self.begin) else {}),
            **({} if self.chat is None else {"chat": self.chat, "chat_template": template}),
        }
        return hashlib.sha256(json.dumps(determining, sort_keys=True).encode()).hexdigest()

    def plain(self) -> dict[str, Any]:
        """Return the request in JSON's types."""
        corpus = dict(self.corpus) if isinstance(self.corpus, Mapping) else os.fspath(self.corpus)
        allocation = None if self.allocation is None else dict(self.allocation)
        own = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "sources"}
        return {**own, "corpus": corpus, "allocation": allocation, "languages": list(self.languages)}
