"""Segments of one language from the places of its text that were drawn: uniform, and reading little.

The text of a language is taken as one circle of tokens: its documents in the order of its files, and after the last the
first again. A segment begins at any token of it with the same probability, whatever documents, shards and formats the
text is cut into, and runs on into the documents that follow; no two segments of a language overlap.

- Where much of the text is asked for, all of it is tokenized, cut into segments from a random token on, and so many of
  them are chosen at random (:class:`~mbs_ray.text.language_draw.ChosenFromAll`).
- Else addresses are drawn, each as likely as any other; there are about as many as bytes. The document at each is
  tokenized, and what follows until a segment is full. Documents have more or fewer tokens per address, by their script,
  their markup, and what else stands in a line. So a few more spots are drawn than segments, and of these so many are
  kept that the tokens of all documents are equally likely: systematic resampling by tokens per address. Where these
  differ much, more spots are drawn, up to two and a half per segment, so that few are kept twice.

What is read does not grow with the text, but for what is compressed: a part of it is decoded up to the last spot in it.
No place before that may be left out, and none behind it is needed; of one gzip with n spots in it that is n / (n + 1)
on average. The result depends on seed, language and text, not on who reads what when.
"""

import math
from collections.abc import Sequence
from itertools import groupby

import numpy as np

from mbs_ray.text.language_draw import ChosenFromAll, LanguageSegments
from mbs_ray.text.unit_draw import Ask, Excerpt, Spot, UnitTokens, generator

# More than usual tokenizers need, so that one reading of a passage nearly always suffices.
BYTES_PER_TOKEN = 32
WIDENING = 4
# One spare spot for so many segments: with less to spare, more spots would have to be kept twice.
SEGMENTS_PER_SPARE = 4
# Two segments of one short document may overlap, of which one is lost: so many of all may be kept twice.
MOST_TWICE = 0.01
STEPS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4)
# Where most addresses have no text, a round asks for at most so many times what it lacks.
ROUND_GROWTH = 16
MOST_ROUNDS = 12


class SpotDraw:
    """Rounds of spots; where they do not lead to the segments asked for, all text is taken instead."""

    def __init__(
        self, language: str, extents: Sequence[int], segments: int, length: int, seed: int, from_all: ChosenFromAll
    ) -> None:
        self.language = language
        self._ends = np.cumsum(np.asarray(extents, np.int64))
        self._segments = segments
        self._needed = segments + segments // SEGMENTS_PER_SPARE + 1
        self._length = length
        self._seed = seed
        self._from_all = from_all
        self._exhaustive = False
        self._text_bytes: dict[int, int] = {}
        self._found: dict[int, tuple[int, list[Excerpt]]] = {}
        self._chosen: list[tuple[int, Excerpt]] = []
        self._rounds = self._readings = 0

    def asks(self) -> list[Ask]:
        short = [spot for spot, (_, excerpts) in self._found.items() if self._is_short(excerpts)]
        complete = any(excerpt.complete for spot in short for excerpt in self._found[spot][1])
        if self._exhaustive or self._rounds == MOST_ROUNDS or complete:
            self._exhaustive = True
            return self._from_all.asks()
        if not short:
            self._chosen = self._choice()
            if self._chosen:
                return []
        self._rounds += 1
        for spot in short or self._further():
            self._text_bytes[spot] = self._text_bytes.get(spot, self._length * BYTES_PER_TOKEN // WIDENING) * WIDENING
            self._found.pop(spot, None)
        return self._by_part([spot for spot in self._text_bytes if spot not in self._found])

    def take(self, number: int, result: UnitTokens | Excerpt) -> None:
        if isinstance(result, UnitTokens):
            self._from_all.take(number, result)
            return
        _, excerpts = self._found.setdefault(result.spot, (number, []))
        excerpts.append(result)
        self._readings += len(excerpts) == 1

    def finish(self) -> LanguageSegments:
        if self._exhaustive:
            return self._from_all.finish()
        facts = {
            "units": len(self._ends),
            "units_read": self._readings,
            "units_used": len({part for part, _ in self._chosen}),
            "repeated_segments": 0,
            "dropped_tokens": 0,
            "dropped_bytes": 0,
        }
        in_order = sorted(self._chosen, key=lambda one: (one[0], one[1].begin, one[1].start))
        return LanguageSegments([excerpt.stream for _, excerpt in in_order], facts)

    def _is_short(self, excerpts: Sequence[Excerpt]) -> bool:
        return any(excerpt.tokens and len(excerpt.stream) < self._length for excerpt in excerpts)

    def _choice(self) -> list[tuple[int, Excerpt]]:
        """As many segments as asked for, or none if more spots are needed for that."""
        parts, excerpts = [], []
        for spot in sorted(self._found):
            part, found = self._found[spot]
            if found[0].tokens:
                parts.append(part)
                excerpts.append(sorted(found, key=lambda excerpt: excerpt.copy))
        if len(excerpts) < self._needed:
            return []
        density = np.array([found[0].tokens / found[0].mass for found in excerpts])
        self._needed = max(self._needed, self._enough(density))
        if len(excerpts) < self._needed:
            return []
        offset = float(generator(self._seed, self.language, "offset").random())
        target = self._segments
        while target <= len(excerpts):
            kept = _resampled(density, target, offset)
            chosen = [
                (part, excerpt)
                for part, found, copies in zip(parts, excerpts, kept, strict=True)
                for excerpt in found[:copies]
            ]
            apart = _without_overlaps(chosen)
            if len(apart) >= self._segments:
                return apart[: self._segments]
            target += self._segments - len(apart)
        return []

    def _enough(self, density: np.ndarray) -> int:
        """How many spots there must be of these densities for few to be kept twice."""
        for share in STEPS:
            kept = density * (self._segments * share / density.sum())
            if np.maximum(kept - 1, 0).sum() <= MOST_TWICE * kept.sum():
                break
        return math.ceil(min(len(density) / share, self._segments / STEPS[-1]))

    def _further(self) -> range:
        """Numbers of the spots drawn next: what is missing at the yield so far; half as many again after overlaps."""
        asked = len(self._text_bytes)
        have = sum(1 for _, excerpts in self._found.values() if excerpts[0].tokens)
        missing = self._needed - have if have < self._needed else self._needed // 2
        tried = min(asked / have if have else ROUND_GROWTH, ROUND_GROWTH) if asked else 1.0
        return range(asked, asked + math.ceil(missing * tried * (1.1 if asked else 1.0)))

    def _by_part(self, spots: Sequence[int]) -> list[Ask]:
        located = []
        for number in spots:
            address = int(generator(self._seed, self.language, "spot", number).integers(self._ends[-1]))
            part = int(np.searchsorted(self._ends, address, side="right"))
            begin = int(self._ends[part - 1]) if part else 0
            located.append((part, self._text_bytes[number], Spot(number, address - begin)))
        return [
            Ask(self.language, part, tuple(spot for *_, spot in group), text_bytes)
            for (part, text_bytes), group in groupby(sorted(located), key=lambda one: one[:2])
        ]


def _resampled(density: np.ndarray, target: int, offset: float) -> list[int]:
    """How often each is kept: in proportion to its density, `target` in all, one point per step of equal weight."""
    steps = np.floor(np.cumsum(density) * (target / density.sum()) + offset)
    return np.diff(steps, prepend=0).astype(int).tolist()


def _without_overlaps(chosen: Sequence[tuple[int, Excerpt]]) -> list[tuple[int, Excerpt]]:
    """Return the first of those that share a token, and all that share none."""
    taken: dict[str, list[tuple[int, int]]] = {}
    apart = []
    for part, excerpt in chosen:
        free = True
        pieces = list(excerpt.pieces())
        for place, (label, start, stop) in enumerate(pieces):
            own = [(begin, end) for name, begin, end in pieces[:place] if name == label]
            free = free and not any(start < end and begin < stop for begin, end in [*taken.get(label, []), *own])
        if free:
            apart.append((part, excerpt))
            for label, start, stop in pieces:
                taken.setdefault(label, []).append((start, stop))
    return apart
