"""From a request to a written set of segments, here or through Ray Data; the same request gives the same bits."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import ray

from mbs_ray.errors import InputError
from mbs_ray.text.conversation_draw import ConversationDraw
from mbs_ray.text.cpu_wait import await_cpu
from mbs_ray.text.here import HERE_BYTES, gather_here, reading_bytes
from mbs_ray.text.language_draw import ChosenFromAll, LanguageDraw, LanguageSegments, Shortage, WholeText
from mbs_ray.text.ray_data import Found, Recipe, gather
from mbs_ray.text.segment_file import SegmentSet, write_segments
from mbs_ray.text.segment_request import SegmentRequest
from mbs_ray.text.shards import Shard
from mbs_ray.text.spot_draw import BYTES_PER_TOKEN, SpotDraw
from mbs_ray.text.text_counts import refuse_foreign_ids, refuse_markup, refuse_unknown, text_counts
from mbs_ray.text.unit_draw import Ask, Excerpt

Notify = Callable[[int, int], None]
Reader = Callable[[Sequence[Ask]], Iterable[Found]]
log = logging.getLogger(__name__)


def check_request(request: SegmentRequest) -> None:
    """All checks that need no Ray: opens corpus and tokenizer, and reads the first document of each file of text.

    What is drawn is checked when it is read. InputError, one line, names the file, line, field or language.
    """
    _ = request.fingerprint


def draw_segments(
    request: SegmentRequest, directory: Path, progress: Notify | None = None, here_bytes: int = HERE_BYTES
) -> SegmentSet:
    """Writes `<directory>/<fingerprint[:16]>.parquet`, or reuses it.

    Rows are ordered by language (table order), and by where they begin in its text. `progress` is called with the
    units and spots done, and those asked for so far. Where more than `here_bytes` of text must be read at once, Ray
    Data does it, for which Ray must be initialized. InputError for a corpus that is missing, malformed, or too short.
    """
    path = directory / f"{request.fingerprint[:16]}.parquet"
    if (written := _written(path, request.fingerprint)) is not None:
        return written
    return write_segments(path, request.fingerprint, request.plain(), _drawn(request, progress, here_bytes))


def draw_per_language(
    request: SegmentRequest, directory: Path, progress: Notify | None = None
) -> dict[str, SegmentSet]:
    """Draw as :func:`draw_segments` for every language of the allocation :meth:`alone <SegmentRequest.for_language>`.

    A set for each language, with all that are not written yet drawn in one reading.
    """
    assert request.allocation is not None
    apart = {language: request.for_language(language) for language in request.opened.shards}
    paths = {language: directory / f"{one.fingerprint[:16]}.parquet" for language, one in apart.items()}
    found = {language: _written(path, apart[language].fingerprint) for language, path in paths.items()}
    missing = {language: request.allocation[language] for language, one in found.items() if one is None}
    if missing:
        together = replace(request, languages=tuple(missing), allocation=missing)
        for language, drawn in _drawn(together, progress, HERE_BYTES).items():
            one = apart[language]
            found[language] = write_segments(paths[language], one.fingerprint, one.plain(), {language: drawn})
    return {language: one for language, one in found.items() if one is not None}


def _drawn(request: SegmentRequest, progress: Notify | None, here_bytes: int) -> dict[str, LanguageSegments]:
    draws = language_draws(request)
    fill(draws, partial(_read, request.opened.shards, recipe_of(request), here_bytes), progress)
    return finished(request, draws)


def _read(
    shards: Mapping[str, tuple[Shard, ...]], recipe: Recipe, here_bytes: int, asks: Sequence[Ask]
) -> Iterator[Found]:
    if reading_bytes(shards, asks) <= here_bytes:
        return gather_here(shards, recipe, asks)
    if not ray.is_initialized():
        raise RuntimeError("Ray is not initialized: call ray.init() first")
    await_cpu()
    return gather(shards, recipe, _tokenizers(), asks)


def recipe_of(request: SegmentRequest) -> Recipe:
    """What the tokens of the request depend on besides its text."""
    digest = f"{request.tokenizer_facts.digest}{request.template_digest or ''}"
    return Recipe(request.tokenizer, digest, request.text_length, request.seed, request.join, request.chat)


def finished(request: SegmentRequest, draws: Mapping[str, LanguageDraw]) -> dict[str, LanguageSegments]:
    """Each language's segments, begun as the tokenizer begins a text, with what was counted of theirs.

    InputError where the text is too little, much of it is unknown to the tokenizer, or a token to the model.
    """
    _, _, unknown, rows = request.tokenizer_facts
    begin = request.begin
    languages = {}
    for language, draw in draws.items():
        drawn = draw.finish()
        if request.chat:
            refuse_markup(language, drawn.segments)
        refuse_foreign_ids(request.tokenizer, drawn.segments, rows)
        facts = {**drawn.facts, **text_counts(drawn.segments, unknown)}
        segments = [one.preceded(begin) for one in drawn.segments] if begin else drawn.segments
        languages[language] = LanguageSegments(segments, facts)
    refuse_unknown(request.tokenizer, {language: one.facts for language, one in languages.items()})
    return languages


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
    length, seed = request.text_length, request.seed
    draws: dict[str, LanguageDraw] = {}
    for language in request.opened.shards:
        units = len(request.opened.units(language))
        if request.chat == "one_per_segment":
            draws[language] = _conversations(request, language, units)
            continue
        if request.allocation is None and request.at_most is None:
            draws[language] = WholeText(language, units, length)
            continue
        if request.allocation is not None:
            segments = request.allocation[language]
            shortage: Shortage = "repeat" if request.allow_repeat else "raise"
        else:
            assert request.at_most is not None
            segments, shortage = request.at_most, "accept"
        extents = request.opened.extents(language)
        from_all = ChosenFromAll(language, units, segments, length, seed, shortage)
        much = sum(extents) <= segments * length * BYTES_PER_TOKEN
        draws[language] = from_all if much else SpotDraw(language, extents, segments, length, seed, from_all)
    return draws


def _conversations(request: SegmentRequest, language: str, units: int) -> ConversationDraw:
    length, seed = request.text_length, request.seed
    if request.allocation is None:
        return ConversationDraw(language, units, request.at_most, length, seed, "accept")
    shortage: Shortage = "repeat" if request.allow_repeat else "raise"
    return ConversationDraw(language, units, request.allocation[language], length, seed, shortage)


def fill(draws: Mapping[str, LanguageDraw], read: Reader, progress: Notify | None) -> None:
    """Round after round, one reading for all languages, until no language asks for more."""
    done = asked = 0
    while asks := [ask for draw in draws.values() for ask in draw.asks()]:
        asked += sum(1 if ask.spots is None else len(ask.spots) for ask in asks)
        for language, number, result in read(asks):
            draws[language].take(number, result)
            if isinstance(result, Excerpt) and result.copy:
                continue
            done += 1
            if progress is not None:
                progress(done, asked)


def _tokenizers() -> int:
    """Choose the number of tokenizing tasks by the cluster's CPUs; it changes the time, not the result."""
    return 1 if ray.cluster_resources().get("CPU", 1) < 8 else 2
