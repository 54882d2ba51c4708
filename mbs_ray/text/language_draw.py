"""How one language's segments are gathered from its units, in rounds that depend only on their results."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from mbs_ray.errors import InputError
from mbs_ray.text.token_stream import TokenStream, joined
from mbs_ray.text.unit_draw import Ask, UnitTokens, generator

# More than usual tokenizers need, so that one reading of a unit nearly always suffices.
BYTES_PER_TOKEN = 32
WIDENING = 4

Shortage = Literal["raise", "repeat", "accept"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class LanguageSegments:
    """The segments of one language in their final order, and what gathering them took.

    `facts`: units of the language, times a unit was read, units used, segments that repeat text; tokens and bytes
    dropped: the incomplete last segment and documents without tokens, 0 for drawn segments.
    """

    segments: Sequence[TokenStream]
    facts: dict[str, int]


class LanguageDraw(Protocol):
    """The drawing of one language's segments, in rounds: read what `asks` names and `take` each result, until it names
    nothing; then `finish`.

    Results of a round arrive in any order. What the next round asks depends on all of them together, never on their
    order or on other languages, so that the segments do not depend on the machine that reads them.
    """

    language: str

    def asks(self) -> list[Ask]: ...

    def take(self, unit: int, result: UnitTokens) -> None: ...

    def finish(self) -> LanguageSegments:
        """Return the segments. InputError if the text is too little."""
        ...


class RandomDraw:
    """Segments from units in a random order, spread over as many units as there are segments.

    What a unit cannot give, further units give; when all were visited, those with text left over give more. Tails
    of exhausted units are packed together, so a language gives every full segment its tokens fill. What to do where
    that is not enough says `shortage`: raise InputError, repeat windows of the text, or accept fewer.
    """

    def __init__(self, language: str, units: int, segments: int, length: int, seed: int, shortage: Shortage) -> None:
        self.language = language
        self._length = length
        self._segments = segments
        self._seed = seed
        self._shortage = shortage
        self._order: list[int] = generator(seed, language, "units").permutation(units).tolist()
        self._asked: dict[int, Ask] = {}
        self._results: dict[int, UnitTokens] = {}
        self._readings = 0

    def asks(self) -> list[Ask]:
        if not (new := self._with_more_text()):
            have = self._full() + len(self._tails()) // self._length
            missing = self._segments - have
            if missing > 0:
                new = self._further(missing, have) or self._left_over(missing)
        self._asked.update({ask.unit: ask for ask in new})
        return new

    def take(self, unit: int, result: UnitTokens) -> None:
        self._results[unit] = result
        self._readings += 1

    def finish(self) -> LanguageSegments:
        by_unit: dict[int, list[TokenStream]] = {}
        remaining = self._segments
        for unit in self._asked:
            by_unit[unit] = list(self._results[unit].stream.segments(self._length, remaining))
            remaining -= len(by_unit[unit])
        segments = [segment for unit in sorted(by_unit) for segment in by_unit[unit]]
        if remaining:
            segments += self._tails().segments(self._length, remaining)
        given = len(segments)
        if given < self._segments and (self._shortage != "accept" or given == 0):
            segments += self._repeats(given)
        facts = {
            "units": len(self._order),
            "units_read": self._readings,
            "units_used": sum(1 for chosen in by_unit.values() if chosen),
            "repeated_segments": len(segments) - given,
            "dropped_tokens": 0,
            "dropped_bytes": 0,
        }
        return LanguageSegments(segments, facts)

    def _with_more_text(self) -> list[Ask]:
        """Units whose text was cut too short for their tokens, again with more of it."""
        return [
            replace(ask, text_bytes=ask.text_bytes * WIDENING)
            for unit, ask in self._asked.items()
            if ask.tokens is not None and ask.text_bytes is not None
            if not self._results[unit].exhausted and len(self._results[unit].stream) < ask.tokens
        ]

    def _further(self, missing: int, have: int) -> list[Ask]:
        """As many units not yet visited as are needed at the yield so far."""
        visited = len(self._asked)
        wanted = -(-missing * visited // have) if have else missing + visited
        return self._shared(missing, dict.fromkeys(self._order[visited : visited + wanted], 0))

    def _left_over(self, missing: int) -> list[Ask]:
        """More segments from units that have more."""
        units = [unit for unit in self._asked if not self._results[unit].exhausted][:missing]
        return self._shared(missing, {unit: len(self._results[unit].stream) // self._length for unit in units})

    def _shared(self, missing: int, given: Mapping[int, int]) -> list[Ask]:
        """The missing segments shared evenly, at least one each, on top of what each unit has given."""
        if not given:
            return []
        share, rest = divmod(max(missing, len(given)), len(given))
        quotas = {unit: has + share + (place < rest) for place, (unit, has) in enumerate(given.items())}
        return [
            Ask(self.language, unit, quota * self._length, quota * self._length * BYTES_PER_TOKEN)
            for unit, quota in quotas.items()
        ]

    def _full(self) -> int:
        return sum(len(result.stream) // self._length for result in self._results.values())

    def _tails(self) -> TokenStream:
        exhausted = [self._results[unit].stream for unit in self._asked if self._results[unit].exhausted]
        return joined([stream.cut(len(stream) // self._length * self._length, None) for stream in exhausted])

    def _repeats(self, given: int) -> list[TokenStream]:
        """Windows at random positions of all the language's text, in its order."""
        if self._shortage == "raise" or given == 0:
            raise InputError(
                f"language {self.language!r}: the corpus gives {given} segments of {self._length} tokens, "
                f"{self._segments} were asked for: ask for fewer or shorter ones"
                + (", or allow_repeat" if given else "")
            )
        missing = self._segments - given
        log.warning(
            "language %s: the corpus gives %d of %d segments, %d overlapping windows repeat its text",
            self.language,
            given,
            self._segments,
            missing,
        )
        text = joined([self._results[unit].stream for unit in sorted(self._results)])
        random = generator(self._seed, self.language, "repeats")
        starts = random.integers(len(text) - self._length + 1, size=missing)
        return [text.cut(start, start + self._length).compact() for start in sorted(starts.tolist())]


class WholeText:
    """All full segments of a language, in the text's own order; at most one incomplete segment is dropped."""

    def __init__(self, language: str, units: int, length: int) -> None:
        self.language = language
        self._count = units
        self._length = length
        self._results: dict[int, UnitTokens] = {}

    def asks(self) -> list[Ask]:
        return [] if self._results else [Ask(self.language, unit, None, None) for unit in range(self._count)]

    def take(self, unit: int, result: UnitTokens) -> None:
        self._results[unit] = result

    def finish(self) -> LanguageSegments:
        results = [self._results[unit] for unit in range(self._count)]
        text = joined([result.stream for result in results])
        segments = list(text.segments(self._length))
        if not segments:
            raise InputError(
                f"language {self.language!r}: the corpus gives {len(text)} tokens, "
                f"fewer than one segment of {self._length}: ask for shorter segments"
            )
        dropped = text.cut(len(segments) * self._length, None)
        facts = {
            "units": self._count,
            "units_read": self._count,
            "units_used": self._count,
            "repeated_segments": 0,
            "dropped_tokens": len(dropped),
            "dropped_bytes": int(dropped.bytes.sum()) + sum(result.lost_bytes for result in results),
        }
        return LanguageSegments(segments, facts)
