"""From a request to a written set of segments, drawn through Ray Data; the same request gives the same bits."""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import ray

from mbs_ray.calibration.corpus import Corpus, Location, open_corpus
from mbs_ray.calibration.draw import Ask, UnitTokens
from mbs_ray.calibration.language_draw import LanguageDraw, LanguageSegments, RandomDraw, Shortage, WholeText
from mbs_ray.calibration.pipeline import Located, Recipe, gather
from mbs_ray.calibration.segment_file import SegmentSet, write_segments
from mbs_ray.calibration.tokenization import DocumentTokenizer, Join
from mbs_ray.errors import InputError

FORMAT = 1  # raise it with any change that draws other tokens from the same request
Progress = Callable[[int, int], None]
Reader = Callable[[Sequence[Located]], Iterable[tuple[Ask, UnitTokens]]]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SegmentRequest:
    """Segments wanted of each language, from a corpus (what `parse_location` takes) through a tokenizer.

    With an `allocation` exactly so many are drawn, at random places of the whole text by (seed, language);
    `allow_repeat` lets windows overlap where it is too short. Without one, at most `at_most` of each language are
    drawn in that way, or, where that is None, all the text is taken in its own order. `tokenizer` is a directory or
    a hub id; `join` is what stands between documents. InputError for a field that makes no sense.
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

    def __post_init__(self) -> None:
        if self.sequence_length < 2:
            raise InputError(f"sequence length {self.sequence_length}: a segment needs at least 2 tokens")
        if self.seed < 0:
            raise InputError(f"seed {self.seed}: must not be negative")
        if not self.languages:
            raise InputError("no language to take segments of")
        if self.at_most is not None and self.at_most < 1:
            raise InputError(f"{self.at_most} segments per language: must be at least 1")
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
        return open_corpus(self.corpus, self.languages)

    @cached_property
    def tokenizer_digest(self) -> str:
        """Hex SHA-256 of the tokenizer, loaded once for this request."""
        return DocumentTokenizer(self.tokenizer).digest()

    def alone(self, language: str) -> "SegmentRequest":
        """The same for one language of the allocation, whose segments do not depend on the others."""
        assert self.allocation is not None
        one = replace(self, languages=(language,), allocation={language: self.allocation[language]})
        # What is open already is not opened again for each language.
        one.__dict__["opened"] = Corpus({language: self.opened.shards[language]})
        one.__dict__["tokenizer_digest"] = self.tokenizer_digest
        return one

    @cached_property
    def fingerprint(self) -> str:
        """Hex SHA-256 of all that determines the segments."""
        drawn = self.allocation is not None or self.at_most is not None
        determining = {
            "format": FORMAT,
            "corpus": self.opened.identity,
            "tokenizer": self.tokenizer_digest,
            "allocation": None if self.allocation is None else dict(self.allocation),
            "at_most": self.at_most if self.allocation is None else None,
            "sequence_length": self.sequence_length,
            "seed": self.seed if drawn else None,
            "allow_repeat": self.allow_repeat if self.allocation is not None else None,
            # Not named where it is as it always was, so that what was drawn then is found again.
            **({} if self.join == "end_token" else {"join": self.join}),
        }
        return hashlib.sha256(json.dumps(determining, sort_keys=True).encode()).hexdigest()


def check_request(request: SegmentRequest) -> None:
    """All checks that need no Ray: opens corpus and tokenizer; of text formats it reads the units drawn first.

    InputError, one line, names the file, line, field or language.
    """
    _ = request.fingerprint
    for language, draw in language_draws(request).items():
        request.opened.validate(language, (ask.unit for ask in draw.asks()))


def draw_segments(request: SegmentRequest, directory: Path, progress: Progress | None = None) -> SegmentSet:
    """Writes `<directory>/<fingerprint[:16]>.parquet`, or reuses it; Ray must be initialized.

    Rows are ordered by language (table order), shard, unit; segments that no single unit fills come last.
    `progress` is called with the units done and the units asked for so far. InputError for a corpus that is missing,
    malformed, or has too little text.
    """
    path = directory / f"{request.fingerprint[:16]}.parquet"
    if (written := _written(path, request.fingerprint)) is not None:
        return written
    return write_segments(path, request.fingerprint, _plain(request), _drawn(request, progress))


def draw_apart(request: SegmentRequest, directory: Path, progress: Progress | None = None) -> dict[str, SegmentSet]:
    """As :func:`draw_segments` for every language of the allocation :meth:`alone <SegmentRequest.alone>`.

    A set for each language, with all that are not written yet drawn in one reading.
    """
    assert request.allocation is not None
    apart = {language: request.alone(language) for language in request.opened.shards}
    paths = {language: directory / f"{one.fingerprint[:16]}.parquet" for language, one in apart.items()}
    found = {language: _written(path, apart[language].fingerprint) for language, path in paths.items()}
    missing = {language: request.allocation[language] for language, one in found.items() if one is None}
    if missing:
        together = replace(request, languages=tuple(missing), allocation=missing)
        for language, drawn in _drawn(together, progress).items():
            one = apart[language]
            found[language] = write_segments(paths[language], one.fingerprint, _plain(one), {language: drawn})
    return {language: one for language, one in found.items() if one is not None}


def _drawn(request: SegmentRequest, progress: Progress | None) -> dict[str, LanguageSegments]:
    if not ray.is_initialized():
        raise RuntimeError("Ray is not initialized: call ray.init() first")
    draws = language_draws(request)
    recipe = Recipe(request.tokenizer, request.sequence_length, request.seed, request.join)
    fill(request, draws, partial(gather, request.opened.shards, recipe, _tokenizers()), progress)
    return {language: draw.finish() for language, draw in draws.items()}


def _written(path: Path, fingerprint: str) -> SegmentSet | None:
    if not path.exists():
        return None
    try:
        written = SegmentSet.open(path)
    except InputError as error:
        log.warning("%s; it is drawn again", error)
        return None
    return written if written.fingerprint == fingerprint else None


def language_draws(request: SegmentRequest) -> dict[str, LanguageDraw]:
    """What gathers each language's segments, in table order."""
    length, seed = request.sequence_length, request.seed
    draws: dict[str, LanguageDraw] = {}
    for language in request.opened.shards:
        units = request.opened.unit_count(language)
        if request.allocation is not None:
            shortage: Shortage = "repeat" if request.allow_repeat else "raise"
            draws[language] = RandomDraw(language, units, request.allocation[language], length, seed, shortage)
        elif request.at_most is not None:
            draws[language] = RandomDraw(language, units, request.at_most, length, seed, "accept")
        else:
            draws[language] = WholeText(language, units, length)
    return draws


def fill(request: SegmentRequest, draws: Mapping[str, LanguageDraw], read: Reader, progress: Progress | None) -> None:
    """Round after round, one reading for all languages, until no language asks for more."""
    done = asked = 0
    while asks := [ask for draw in draws.values() for ask in draw.asks()]:
        asked += len(asks)
        for ask, result in read([Located(ask, *request.opened.locate(ask.language, ask.unit)) for ask in asks]):
            draws[ask.language].take(ask.unit, result)
            done += 1
            if progress is not None:
                progress(done, asked)


def _tokenizers() -> int:
    """Tokenizing actors for the cluster's CPUs; they change the time, not the result."""
    return 1 if ray.cluster_resources().get("CPU", 1) < 8 else 2


def _plain(request: SegmentRequest) -> dict[str, Any]:
    """The request in JSON's types."""
    location = request.corpus
    corpus = dict(location) if isinstance(location, Mapping) else os.fspath(location)
    allocation = None if request.allocation is None else dict(request.allocation)
    return {**asdict(request), "corpus": corpus, "allocation": allocation, "languages": list(request.languages)}
