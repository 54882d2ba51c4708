"""Tokens with what they stand for: the currency between tokenizing, drawing and segments."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mbs_ray.errors import InputError
from mbs_ray.text.shards import Source

LARGEST_INDEX = np.iinfo(np.int16).max


@dataclass(frozen=True, eq=False)
class TokenStream:
    """Consecutive tokens of one language.

    `token_ids`, `document_index` (entry of `sources`, -1 for separators and special tokens) and `bytes`
    (UTF-8 bytes of text the token stands for) are int32 of the same length.
    """

    token_ids: npt.NDArray[np.int32]
    document_index: npt.NDArray[np.int32]
    bytes: npt.NDArray[np.int32]
    sources: tuple[Source, ...]

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def documents(self) -> tuple[str, ...]:
        """Labels of the sources."""
        return tuple(source.label for source in self.sources)

    def rotated(self, start: int) -> "TokenStream":
        """Rotate the stream to begin at token `start`; the tokens before it come last."""
        return TokenStream(
            np.roll(self.token_ids, -start),
            np.roll(self.document_index, -start),
            np.roll(self.bytes, -start),
            self.sources,
        )

    def cut(self, start: int, stop: int | None) -> "TokenStream":
        """Cut out tokens start…stop-1, or to the end, with all documents."""
        return TokenStream(
            self.token_ids[start:stop],
            self.document_index[start:stop],
            self.bytes[start:stop],
            self.sources,
        )

    def preceded(self, token_ids: Sequence[int]) -> "TokenStream":
        """Return the same after tokens that are no text: they belong to no document and stand for no bytes."""
        before = np.asarray(token_ids, np.int32)
        nothing = np.zeros(len(before), np.int32)
        return TokenStream(
            np.concatenate([before, self.token_ids]),
            np.concatenate([nothing - 1, self.document_index]),
            np.concatenate([nothing, self.bytes]),
            self.sources,
        )

    def compact(self) -> "TokenStream":
        """Keep only the documents of these tokens, by first appearance. InputError above 32,767."""
        inside = self.document_index >= 0
        used, first, inverse = np.unique(self.document_index[inside], return_index=True, return_inverse=True)
        order = np.argsort(first)
        if len(order) > LARGEST_INDEX:
            raise InputError(
                f"a segment spans {len(order)} documents, at most {LARGEST_INDEX} are possible: "
                "ask for a shorter sequence length"
            )
        rank = np.empty(len(order), np.int32)
        rank[order] = np.arange(len(order), dtype=np.int32)
        document_index = np.full(len(self), -1, np.int32)
        document_index[inside] = rank[inverse]
        sources = tuple(self.sources[used[position]] for position in order)
        return TokenStream(self.token_ids, document_index, self.bytes, sources)

    def segments(self, length: int, count: int | None = None) -> Iterator["TokenStream"]:
        """Yield the first `count` (default: all) full segments of `length` tokens, each compact."""
        full = len(self) // length
        for position in range(full if count is None else min(count, full)):
            yield self.cut(position * length, (position + 1) * length).compact()


def joined(streams: Sequence[TokenStream]) -> TokenStream:
    """Join the streams one after the other."""
    offsets = np.cumsum([0, *(len(stream.sources) for stream in streams)])
    indices = [
        np.where(stream.document_index < 0, -1, stream.document_index + offset)
        for stream, offset in zip(streams, offsets, strict=False)
    ]
    return TokenStream(
        _concatenated([stream.token_ids for stream in streams]),
        _concatenated(indices),
        _concatenated([stream.bytes for stream in streams]),
        tuple(source for stream in streams for source in stream.sources),
    )


def _concatenated(arrays: Sequence[npt.NDArray[np.integer]]) -> npt.NDArray[np.int32]:
    return np.concatenate([np.empty(0, np.int32), *arrays]).astype(np.int32)
