"""What every kind of shard gives: documents, unit by unit, and an identity for fingerprints.

A shard is one file (or one stream) of one language. All its text is read unit by unit: a *unit* is a row group of
parquet, about 1 MiB of plain text, a whole compressed file. Places in its text are drawn by address: a *part* is what
must be read from its beginning to come to any place in it, a row group, a member of a compressed file, a whole plain
file (where every place is one seek away).
"""

import hashlib
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

DIGEST_BYTES = 16
BEGINNING_CHARACTERS = 60
#: Bytes that are decoded, on the way to a place, in the time in which one is tokenized.
DECODED_PER_TOKENIZED = 16
INVISIBLE = "ZC"  # Unicode categories of separators, controls, format characters


class Document(NamedTuple):
    """One document: where it is from ("name#row", in plain text "name@byte"), its text, its UTF-8 bytes."""

    label: str
    text: str
    size: int


class Source(NamedTuple):
    """What a segment keeps of a document: its label, a digest of its text (16 bytes), its first characters.

    `composed` says whether its text is in the normal form NFC; a file of segments does not tell.
    """

    label: str
    digest: bytes
    beginning: str
    composed: bool = True

    @classmethod
    def of(cls, document: Document) -> "Source":
        """Return the digest is BLAKE2b of the text in NFC with single spaces: other line breaks make no other document.

        A document without a visible character counts as empty.
        """
        text = " ".join(unicodedata.normalize("NFC", document.text).split())
        if all(unicodedata.category(character)[0] in INVISIBLE for character in text):
            text = ""
        digest = hashlib.blake2b(text.encode(), digest_size=DIGEST_BYTES).digest()
        composed = unicodedata.is_normalized("NFC", document.text)
        return cls(document.label, digest, text[:BEGINNING_CHARACTERS], composed)

    @property
    def blank(self) -> bool:
        """Whether nothing of it can be seen: such documents are all alike, and none is another's copy."""
        return not self.beginning


class Addressed(NamedTuple):
    """A document of a part, and the addresses begin ≤ place < end that it stands at, in the measure of the extents."""

    begin: float
    end: float
    document: Document


@dataclass
class Wanted:
    """What the reader of a part says of what it needs next: no document that ends at or before this address."""

    start: float = 0


class Shard(Protocol):
    """One file or stream of one language; frozen and picklable, so that any worker can read it."""

    @property
    def name(self) -> str: ...

    @property
    def unit_count(self) -> int: ...

    @property
    def extents(self) -> tuple[int, ...]:
        """Of each part, the number of its addresses: about the bytes of its text, known without reading it.

        All text is at addresses below it. Where that leaves room, nothing is at the rest.
        """
        ...

    @property
    def identity(self) -> tuple[str, ...]:
        """Name, size and content digest: equal only if the text is."""
        ...

    def spot_bytes(self, part: int, wanted: int) -> int:
        """Estimate what coming to places of a part takes at which `wanted` bytes are read, in bytes that are tokenized.

        All of a part that must be fetched first, or may be one document.
        """
        ...

    def read(self, units: Sequence[int]) -> Iterator[Iterator[Document]]:
        """Yield the documents of each of these units, to be read before the next; InputError if malformed."""
        ...

    def addressed(self, part: int, wanted: Wanted) -> Iterator[Addressed]:
        """Yield the documents of a part from `wanted.start` on, which may grow between two; InputError if malformed.

        Each document is in exactly one part; it may reach over the end of it.
        """
        ...
