"""How one language's segments are gathered, in rounds that depend only on their results: from all of its text."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from mbs_ray.errors import InputError
from mbs_ray.text.token_stream import TokenStream, joined
from mbs_ray.text.unit_draw import Ask, Excerpt, UnitTokens, generator

Shortage = Literal["raise", "repeat", "accept"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class LanguageSegments:
    """The segments of one language in their final order, and what gathering them took.

    `facts`: units or parts of the language, how many units or spots were read, and used; segments that repeat text;
    tokens and bytes dropped: the incomplete last segment and documents without tokens, 0 for drawn segments.
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

    def take(self, number: int, result: UnitTokens | Excerpt) -> None:
        """What was found in the unit, or the part, of this number."""
        ...

    def finish(self) -> LanguageSegments:
        """Return the segments. InputError if the text is too little."""
        ...


class WholeText:
    """All full segments of a language, in the text's own order; at most one incomplete segment is dropped."""

    def __init__(self, language: str, units: int, length: int) -> None:
        self.language = language
        self._count = units
        self._length = length
        self._results: dict[int, UnitTokens] = {}

    def asks(self) -> list[Ask]:
        return [] if self._results else [Ask(self.language, unit) for unit in range(self._count)]

    def take(self, number: int, result: UnitTokens | Excerpt) -> None:
        assert isinstance(result, UnitTokens)
        self._results[number] = result

    def text(self) -> TokenStream:
        """All tokens, in order."""
        return joined([self._results[unit].stream for unit in range(self._count)])

    def facts(self, **others: int) -> dict[str, int]:
        counted = {"units": self._count, "units_read": self._count, "units_used": self._count}
        return {**counted, "repeated_segments": 0, "dropped_tokens": 0, "dropped_bytes": 0, **others}

    def finish(self) -> LanguageSegments:
        text = self.text()
        segments = list(text.segments(self._length))
        if not segments:
            raise InputError(
                f"language {self.language!r}: the corpus gives {len(text)} tokens, "
                f"fewer than one segment of {self._length}: ask for shorter segments"
            )
        dropped = text.cut(len(segments) * self._length, None)
        lost_bytes = sum(result.lost_bytes for result in self._results.values())
        dropped_bytes = int(dropped.bytes.sum()) + lost_bytes
        return LanguageSegments(segments, self.facts(dropped_tokens=len(dropped), dropped_bytes=dropped_bytes))


class ChosenFromAll:
    """Segments chosen at random from all that the text is cut into, from a random token of its circle on.

    What to do where there are not so many says `shortage`: raise InputError, repeat windows, or accept fewer.
    """

    def __init__(self, language: str, units: int, segments: int, length: int, seed: int, shortage: Shortage) -> None:
        self.language = language
        self._whole = WholeText(language, units, length)
        self._segments = segments
        self._length = length
        self._seed = seed
        self._shortage = shortage

    def asks(self) -> list[Ask]:
        return self._whole.asks()

    def take(self, number: int, result: UnitTokens | Excerpt) -> None:
        self._whole.take(number, result)

    def finish(self) -> LanguageSegments:
        text = self._whole.text()
        random = generator(self._seed, self.language, "chosen")
        if len(text):
            text = text.rotated(int(random.integers(len(text))))
        possible = len(text) // self._length
        if possible < self._segments and (self._shortage != "accept" or possible == 0):
            return self._repeated(text, possible)
        chosen = random.permutation(possible)[: self._segments]
        segments = [self._window(text, place * self._length) for place in np.sort(chosen).tolist()]
        return LanguageSegments(segments, self._whole.facts())

    def _repeated(self, text: TokenStream, possible: int) -> LanguageSegments:
        """All segments, and windows at random positions of the text."""
        if self._shortage == "raise" or possible == 0:
            raise InputError(
                f"language {self.language!r}: the corpus gives {possible} segments of {self._length} tokens, "
                f"{self._segments} were asked for: ask for fewer or shorter ones"
                + (", or allow_repeat" if possible else "")
            )
        missing = self._segments - possible
        log.warning(
            "language %s: the corpus gives %d of %d segments, %d overlapping windows repeat its text",
            self.language,
            possible,
            self._segments,
            missing,
        )
        random = generator(self._seed, self.language, "repeats")
        starts = np.sort(random.integers(len(text) - self._length + 1, size=missing)).tolist()
        segments = [*text.segments(self._length), *(self._window(text, start) for start in starts)]
        return LanguageSegments(segments, self._whole.facts(repeated_segments=missing))

    def _window(self, text: TokenStream, start: int) -> TokenStream:
        return text.cut(start, start + self._length).compact()
