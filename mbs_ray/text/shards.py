"""What every kind of shard gives: documents, unit by unit, and an identity for fingerprints.

A shard is one file (or one stream) of one language. A *unit* is the part of it that is drawn at once: a row
group of parquet, about 1 MiB of plain text, a whole compressed file.
"""

import hashlib
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

WHOLE_HASH_BYTES = 64 * 2**20
SAMPLES = 64
SAMPLE_BYTES = 64 * 2**10
DIGEST_BYTES = 16
BEGINNING_CHARACTERS = 60


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
        """The digest is BLAKE2b of the text in NFC with single spaces: other line breaks make no other document."""
        text = " ".join(unicodedata.normalize("NFC", document.text).split())
        digest = hashlib.blake2b(text.encode(), digest_size=DIGEST_BYTES).digest()
        composed = unicodedata.is_normalized("NFC", document.text)
        return cls(document.label, digest, text[:BEGINNING_CHARACTERS], composed)


class Shard(Protocol):
    """One file or stream of one language; frozen and picklable, so that any worker can read it."""

    @property
    def name(self) -> str: ...

    @property
    def unit_count(self) -> int: ...

    @property
    def validated_by_reading(self) -> bool:
        """True where only reading a unit shows whether it is well-formed (text formats)."""
        ...

    @property
    def identity(self) -> tuple[str, ...]:
        """Name, size and content digest: equal only if the text is."""
        ...

    def read(self, units: Sequence[int]) -> Iterator[Iterator[Document]]:
        """The documents of each of these units, to be read before the next; InputError if malformed."""
        ...


def file_digest(path: Path, footer_bytes: int = 0) -> str:
    """Hex SHA-256 that stands for a file's content.

    Up to 64 MiB it is of every byte. Beyond, of 64 samples of 64 KiB spread evenly over the file, the last
    `footer_bytes`, and the time of modification, so that an edit between the samples is not overlooked.
    """
    status = path.stat()
    digest = hashlib.sha256()
    with path.open("rb") as file:
        if status.st_size <= WHOLE_HASH_BYTES:
            return hashlib.file_digest(file, "sha256").hexdigest()
        for sample in range(SAMPLES):
            file.seek(sample * (status.st_size - SAMPLE_BYTES) // (SAMPLES - 1))
            digest.update(file.read(SAMPLE_BYTES))
        file.seek(status.st_size - footer_bytes)
        digest.update(file.read())
    digest.update(str(status.st_mtime_ns).encode())
    return digest.hexdigest()
