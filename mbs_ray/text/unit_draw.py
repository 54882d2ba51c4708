"""What is read and tokenized for a draw: the document at an address, what follows it, and segments from inside it.

Pure functions of (seed, language, number of the spot): no Ray, and no file but through a shard.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import NamedTuple

import numpy as np

from mbs_ray.text.shards import Document, Shard, Wanted
from mbs_ray.text.token_stream import TokenStream, joined

BATCH_BYTES = 2**20
#: Segments that begin at one spot, should its document hold more tokens per address than others.
COPIES = 2
Tokenize = Callable[[Sequence[Document]], list[TokenStream]]


def generator(*parts: object) -> np.random.Generator:
    """Make a random generator that is seeded by the parts, equal on every machine."""
    digest = hashlib.sha256("\0".join(map(str, parts)).encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest)))


class Spot(NamedTuple):
    """An address of a part that was drawn; spots are numbered in the order in which a language draws them."""

    number: int
    address: float


@dataclass(frozen=True)
class Ask:
    """What is wanted of a language: all tokens of a unit, or segments that begin at the spots of a part.

    `number` is that of the unit, or of the part. `text_bytes` is how much text is read for a segment.
    """

    language: str
    number: int
    spots: tuple[Spot, ...] | None = None
    text_bytes: int = 0


@dataclass(frozen=True, eq=False)
class UnitTokens:
    """All tokens of a unit; `lost_bytes` are those of documents without any token.

    Where each conversation fills a segment of its own, the stream has only their tokens, segment after segment:
    `lost_bytes` and `lost_tokens` are those besides, and `left_out` counts the conversations too short for one.
    """

    stream: TokenStream
    lost_bytes: int
    lost_tokens: int = 0
    left_out: int = 0


@dataclass(frozen=True, eq=False)
class Excerpt:
    """Consecutive tokens that begin at a spot: those of its document from `start` on, and of documents after it.

    `copy` numbers the excerpts of a spot. Its document has so many `tokens`, and `mass` addresses from `begin` on;
    where the spot is at no document, or one without a token, `tokens` is 0. `lengths` counts the tokens that are of
    each document, with its separators, `labels` names them. The excerpt is shorter than asked for where its text was
    cut too short, or (`complete`) there is no more.
    """

    spot: int
    copy: int
    begin: float
    mass: float
    tokens: int
    start: int
    stream: TokenStream
    labels: tuple[str, ...]
    lengths: tuple[int, ...]
    complete: bool

    def pieces(self) -> Iterator[tuple[str, int, int]]:
        """(label, start, stop): which tokens of which documents these are."""
        starts = chain([self.start], [0] * len(self.labels))
        for label, start, length in zip(self.labels, starts, self.lengths, strict=False):
            if length:
                yield label, start, start + length


@dataclass
class Passage:
    """The document at some spots of a part, and documents after it; none where nothing is there.

    `complete`: these are all the documents of the language.
    """

    spots: list[Spot]
    begin: float = 0.0
    mass: float = 1.0
    documents: list[Document] = field(default_factory=list)
    complete: bool = False
    missing_bytes: float = 0.0

    def add(self, document: Document) -> None:
        self.documents.append(document)
        self.missing_bytes -= document.size


def entries(seed: int, language: str, spot: int) -> list[float]:
    """Where the segments of a spot begin in its document, as shares of its tokens."""
    return generator(seed, language, "entry", spot).random(COPIES).tolist()


def passages(shards: Sequence[Shard], ask: Ask, seed: int) -> Iterator[Passage]:
    """What is at the spots of an ask, each document once however many of them are in it."""
    assert ask.spots is not None
    places = [(shard, part) for shard in shards for part in range(len(shard.extents))]
    shard, part = places[ask.number]
    waiting = deque(sorted(ask.spots, key=lambda spot: spot.address))
    unfilled: deque[Passage] = deque()
    wanted = Wanted(waiting[0].address)
    for begin, end, document in shard.addressed(part, wanted):
        for passage in unfilled:
            passage.add(document)
        if missed := _taken(waiting, begin):
            yield Passage(missed)
        if found := _taken(waiting, end):
            latest = max(max(entries(seed, ask.language, spot.number)) for spot in found)
            missing = ask.text_bytes - document.size * (1 - latest)
            unfilled.append(Passage(found, begin, end - begin, [document], missing_bytes=missing))
        yield from _filled(unfilled)
        if not waiting and not unfilled:
            return
        wanted.start = end if unfilled else waiting[0].address
    if waiting:
        yield Passage([*waiting])
    if not unfilled:
        return
    # The text of a language has no end: after its last document comes its first.
    for shard, part in [*places[ask.number + 1 :], *places[: ask.number + 1]]:
        for _, _, document in shard.addressed(part, Wanted()):
            for passage in unfilled:
                passage.add(document)
            yield from _filled(unfilled)
            if not unfilled:
                return
    for passage in unfilled:
        passage.complete = True
        yield passage


def _taken(waiting: deque[Spot], end: float) -> list[Spot]:
    taken = []
    while waiting and waiting[0].address < end:
        taken.append(waiting.popleft())
    return taken


def _filled(unfilled: deque[Passage]) -> Iterator[Passage]:
    for passage in [passage for passage in unfilled if passage.missing_bytes <= 0]:
        unfilled.remove(passage)
        yield passage


def excerpts(passage: Passage, length: int, tokenize: Tokenize, language: str, seed: int) -> Iterator[Excerpt]:
    """From each entry of each spot `length` tokens; of a spot without any, one excerpt of none."""
    first, rest = passage.documents[:1], passage.documents[1:]
    streams = tokenize(first)
    tokens = sum(map(len, streams))
    if not tokens:
        for spot in passage.spots:
            yield Excerpt(spot.number, 0, 0, 1, 0, 0, joined([]), (), (), False)
        return
    starts = [
        (spot.number, copy, int(entry * tokens))
        for spot in passage.spots
        for copy, entry in enumerate(entries(seed, language, spot.number))
    ]
    available = tokens
    for batch in _batches(rest, 4 * length):
        if available >= max(start for *_, start in starts) + length:
            break
        further = tokenize(batch)
        streams += further
        available += sum(map(len, further))
    for number, copy, start in starts:
        parts, missing = [], length
        for place, stream in enumerate(streams):
            parts.append(stream.cut(0 if place else start, missing if place else start + missing))
            missing -= len(parts[-1])
            if not missing:
                break
        labels = tuple(document.label for document in passage.documents[: len(parts)])
        lengths = tuple(map(len, parts))
        stream = joined(parts).compact()
        yield Excerpt(
            number, copy, passage.begin, passage.mass, tokens, start, stream, labels, lengths, passage.complete
        )


def unit_tokens(documents: Iterable[Document], tokenize: Tokenize) -> UnitTokens:
    """All tokens of a unit, in order."""
    streams: list[TokenStream] = []
    lost_bytes = 0
    for batch in _batches(documents, BATCH_BYTES):
        for document, stream in zip(batch, tokenize(batch), strict=True):
            if len(stream):
                streams.append(stream)
            else:
                lost_bytes += document.size
    return UnitTokens(joined(streams), lost_bytes)


def unit_conversations(documents: Iterable[Document], tokenize: Tokenize, length: int) -> UnitTokens:
    """The first `length` tokens of every conversation of a unit that has as many."""
    kept: list[TokenStream] = []
    lost_bytes = lost_tokens = left_out = 0
    for batch in _batches(documents, BATCH_BYTES):
        for stream in tokenize(batch):
            enough = len(stream) >= length
            lost = stream.cut(length if enough else 0, None)
            lost_bytes += int(lost.bytes.sum(dtype=np.int64))
            lost_tokens += len(lost)
            left_out += not enough
            if enough:
                kept.append(stream.cut(0, length))
    return UnitTokens(joined(kept), lost_bytes, lost_tokens, left_out)


def _batches(documents: Iterable[Document], size: int) -> Iterator[list[Document]]:
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
