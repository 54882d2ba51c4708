"""Which units, documents and tokens are drawn: pure functions of (seed, language), no Ray, no files.

Positions are uniform over the whole text of a language: units in a random order, documents of a unit in a
random order, and the first document entered at a random token.
"""

import hashlib
import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mbs_ray.text.shards import Document
from mbs_ray.text.token_stream import TokenStream, joined

BATCH_BYTES = 2**20
Tokenize = Callable[[Sequence[Document]], list[TokenStream]]


def generator(*parts: object) -> np.random.Generator:
    """Make a random generator that is seeded by the parts, equal on every machine."""
    digest = hashlib.sha256("\0".join(map(str, parts)).encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest)))


@dataclass(frozen=True)
class Ask:
    """What is wanted of a unit: at most `tokens` tokens of about `text_bytes` bytes of its text, at random.

    Both None: all its text in its own order.
    """

    language: str
    unit: int
    tokens: int | None
    text_bytes: int | None


@dataclass(frozen=True, eq=False)
class UnitText:
    """Documents of a unit in the order they are to be tokenized; `complete` if these are all of them."""

    documents: Sequence[Document]
    complete: bool


@dataclass(frozen=True, eq=False)
class UnitTokens:
    """Tokens of a unit: as many as asked for, or all of it where `exhausted`.

    Neither: its text was cut too short. `lost_bytes` are those of documents without any token.
    """

    stream: TokenStream
    exhausted: bool
    lost_bytes: int


def shuffled_documents(documents: Iterable[Document], text_bytes: int, random: np.random.Generator) -> UnitText:
    """The documents in a random order, up to the one that reaches `text_bytes`.

    Every document gets a random rank; a heap keeps the lowest ranks that fill the bytes, so memory is bounded by
    them and more bytes give the same order, continued.
    """
    kept: list[tuple[float, int, Document]] = []
    size = 0
    complete = True
    for position, document in enumerate(documents):
        heapq.heappush(kept, (-random.random(), position, document))
        size += document.size
        while size - kept[0][2].size >= text_bytes:
            size -= heapq.heappop(kept)[2].size
            complete = False
    return UnitText([document for _, _, document in sorted(kept, reverse=True)], complete)


def unit_tokens(
    text: UnitText, tokens: int | None, length: int, tokenize: Tokenize, random: np.random.Generator
) -> UnitTokens:
    """At most `tokens` tokens of a unit, which is entered at random inside its first document; None: all, in order.

    The head passed over of a first document longer than a segment comes last, so that nothing is lost.
    """
    streams: list[TokenStream] = []
    available = start = lost_bytes = used = 0
    for batch in _batches(text.documents, BATCH_BYTES if tokens is None else 4 * tokens):
        if tokens is not None and available - start >= tokens:
            break
        used += len(batch)
        for document, stream in zip(batch, tokenize(batch), strict=True):
            if not len(stream):
                lost_bytes += document.size
                continue
            if not streams and tokens is not None and len(stream) > length:
                start = int(random.integers(len(stream)))
            streams.append(stream)
            available += len(stream)
    stream = joined(streams)
    ended = text.complete and used == len(text.documents)
    stream = stream.rotated(start) if ended else stream.cut(start, None)
    exhausted = ended and (tokens is None or len(stream) < tokens + length)
    return UnitTokens(stream if exhausted else stream.cut(0, tokens), exhausted, lost_bytes)


def _batches(documents: Sequence[Document], size: int) -> Iterator[list[Document]]:
    """Consecutive documents, as many at once as reach `size` bytes."""
    batch: list[Document] = []
    filled = 0
    for document in documents:
        batch.append(document)
        filled += document.size
        if filled >= size:
            yield batch
            batch, filled = [], 0
    if batch:
        yield batch
