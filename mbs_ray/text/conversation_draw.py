"""Segments of one language that each begin with a conversation: drawn among those long enough to fill one."""

import heapq
import logging

from mbs_ray.errors import InputError
from mbs_ray.text.language_draw import LanguageSegments, Shortage
from mbs_ray.text.token_stream import TokenStream
from mbs_ray.text.unit_draw import Ask, Excerpt, UnitTokens, generator

log = logging.getLogger(__name__)


class ConversationDraw:
    """The first `length` tokens of conversations that have as many, each conversation as likely as any other.

    Every conversation is tokenized, no more than `segments` are kept; all where that is None. What to do where there
    are not so many says `shortage`: raise InputError, repeat whole segments, or accept fewer. The shorter conversations
    are counted in the facts.
    """

    def __init__(
        self, language: str, units: int, segments: int | None, length: int, seed: int, shortage: Shortage
    ) -> None:
        self.language = language
        self._units = units
        self._segments = segments
        self._length = length
        self._seed = seed
        self._shortage = shortage
        self._asked = False
        # Those with the smallest lots, in a heap with the largest first; the place in the text tells equal lots apart.
        self._kept: list[tuple[float, int, int, TokenStream]] = []
        self._found = self._left_out = self._lost_tokens = self._lost_bytes = 0

    def asks(self) -> list[Ask]:
        if self._asked:
            return []
        self._asked = True
        return [Ask(self.language, unit) for unit in range(self._units)]

    def take(self, number: int, result: UnitTokens | Excerpt) -> None:
        assert isinstance(result, UnitTokens)
        self._left_out += result.left_out
        self._lost_tokens += result.lost_tokens
        self._lost_bytes += result.lost_bytes
        lots = generator(self._seed, self.language, "conversations", number)
        for place, segment in enumerate(result.stream.segments(self._length)):
            self._found += 1
            one = (-float(lots.random()), -number, -place, segment)
            if self._segments is None or len(self._kept) < self._segments:
                heapq.heappush(self._kept, one)
            else:
                heapq.heappushpop(self._kept, one)

    def finish(self) -> LanguageSegments:
        if self._found == 0 or (self._shortage == "raise" and self._found < (self._segments or 0)):
            raise InputError(
                f"language {self.language!r}: {self._found} conversations have {self._length} tokens or more"
                + (f", {self._segments} were asked for" if self._segments else "")
                + f", {self._left_out} shorter ones are left out: ask for "
                + ("fewer or shorter segments" if self._found else "shorter segments")
                + ", or chat: packed"
            )
        if self._left_out:
            log.warning(
                "language %s: %d of %d conversations are shorter than %d tokens and left out",
                self.language,
                self._left_out,
                self._left_out + self._found,
                self._length,
            )
        in_order = [segment for *_, segment in sorted(self._kept, key=lambda one: (-one[1], -one[2]))]
        missing = (self._segments or 0) - len(in_order) if self._shortage == "repeat" else 0
        if missing > 0:
            again = generator(self._seed, self.language, "repeats").integers(len(in_order), size=missing)
            in_order += [in_order[place] for place in sorted(again.tolist())]
        whole = self._segments is None
        facts = {
            "units": self._units,
            "units_read": self._units,
            "units_used": len({number for _, number, *_ in self._kept}),
            "repeated_segments": max(missing, 0),
            "dropped_tokens": self._lost_tokens if whole else 0,
            "dropped_bytes": self._lost_bytes if whole else 0,
            "short_conversations": self._left_out,
        }
        return LanguageSegments(in_order, facts)
