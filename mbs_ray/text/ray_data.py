"""The drawing as one Ray Data pipeline: tasks read units, actors tokenize, the driver collects by unit."""

import json
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
from ray.data import ActorPoolStrategy, DataContext, TaskPoolStrategy
from ray.util.annotations import RayDeprecationWarning

from mbs_ray.errors import InputError
from mbs_ray.ray_deaths import DEATHS, stage_died
from mbs_ray.text.shards import Document, Shard, Source
from mbs_ray.text.token_stream import TokenStream
from mbs_ray.text.tokenization import DocumentTokenizer, Join
from mbs_ray.text.unit_draw import COPIES, Ask, Excerpt, Passage, Spot, UnitTokens, excerpts, passages, unit_tokens

# Together one CPU, so that neither waits for ever for the other; unequal, else Ray Data fuses readers into the actors.
READER_CPUS, TOKENIZER_CPUS = 0.4, 0.6
# Reading is far faster than tokenizing; many small tasks on few workers, since each new worker takes seconds to start.
TASKS_PER_TOKENIZER, READERS_PER_TOKENIZER = 8, 2
#: Of processes during one drawing.
DEATHS_ALLOWED = 4
TEXT = pa.schema(
    {
        "language": pa.string(),
        "number": pa.int64(),
        "labels": pa.list_(pa.large_string()),
        "texts": pa.list_(pa.large_string()),
        # Of a passage; a unit has no spots.
        "spots": pa.list_(pa.int64()),
        "begin": pa.float64(),
        "mass": pa.float64(),
        "complete": pa.bool_(),
        "error": pa.string(),
    }
)
TOKENS = pa.schema(
    {
        "language": pa.string(),
        "number": pa.int64(),
        "token_ids": pa.large_list(pa.int32()),
        "document_index": pa.large_list(pa.int32()),
        "bytes": pa.large_list(pa.int32()),
        "labels": pa.list_(pa.large_string()),
        "digests": pa.list_(pa.large_binary()),
        "beginnings": pa.list_(pa.large_string()),
        "composed": pa.list_(pa.bool_()),
        # Of a unit.
        "lost_bytes": pa.int64(),
        # Of an excerpt.
        "spot": pa.int64(),
        "copy": pa.int64(),
        "begin": pa.float64(),
        "mass": pa.float64(),
        "tokens": pa.int64(),
        "start": pa.int64(),
        "documents": pa.list_(pa.large_string()),
        "lengths": pa.list_(pa.int64()),
        "complete": pa.bool_(),
        "error": pa.string(),
    }
)


_OF_EXCERPTS = ("spot", "copy", "begin", "mass", "tokens", "start", "complete")
#: Language, number of the unit or part, what was found in it.
Found = tuple[str, int, UnitTokens | Excerpt]
#: Language, number of the unit or part, spot and copy of an excerpt.
Arrival = tuple[str, int, int | None, int]


@dataclass(frozen=True)
class Recipe:
    """What the tokens of a unit depend on besides its text and what is asked of it.

    `text_length`: tokens of a segment besides those that begin it.
    """

    tokenizer: str
    text_length: int
    seed: int
    join: Join = "end_token"


def gather(
    shards: Mapping[str, tuple[Shard, ...]],
    recipe: Recipe,
    tokenizers: int,
    asks: Sequence[Ask],
) -> Iterator[Found]:
    """Yield the tokens of every unit and spot asked for, in whatever order they arrive.

    `tokenizers` actors share the tokenizing, and in proportion tasks the reading; that changes no token. Where an
    process dies, what has not arrived is read again. InputError as the reader raised it; StageDiedError.
    """
    arrived: set[Arrival] = set()
    for deaths in range(1, DEATHS_ALLOWED + 1):
        owed = [ask for ask in asks if not arrived.issuperset(_wanted(ask))]
        if not owed:
            return
        try:
            for found in _stream(shards, recipe, tokenizers, owed):
                # What was asked for together is read again together, and what has arrived of it counts once.
                if not arrived.issuperset(new := _arrivals(found)):
                    arrived |= new
                    yield found
            return
        except DEATHS as error:
            if deaths == DEATHS_ALLOWED:
                raise stage_died(f"processes that draw text died {deaths} times", error) from error


def _wanted(ask: Ask) -> set[Arrival]:
    if ask.spots is None:
        return {(ask.language, ask.number, None, 0)}
    return {(ask.language, ask.number, spot.number, copy) for spot in ask.spots for copy in range(COPIES)}


def _arrivals(found: Found) -> set[Arrival]:
    """What this was all, or a part, of: where a spot has no tokens, nothing else comes of it."""
    language, number, result = found
    if isinstance(result, UnitTokens):
        return {(language, number, None, 0)}
    return {(language, number, result.spot, copy) for copy in ([result.copy] if result.tokens else range(COPIES))}


def _stream(
    shards: Mapping[str, tuple[Shard, ...]], recipe: Recipe, tokenizers: int, asks: Sequence[Ask]
) -> Iterator[Found]:
    items = read_items(asks)
    tokenizers = min(tokenizers, len(items))
    tasks = min(TASKS_PER_TOKENIZER * tokenizers, len(items))
    with DataContext.current(_quiet_context()):
        rows = ray.data.from_items(items, override_num_blocks=tasks).map_batches(
            read_texts,
            fn_kwargs={"shards": shards, "seed": recipe.seed},
            batch_format="pyarrow",
            batch_size=None,
            compute=TaskPoolStrategy(size=min(READERS_PER_TOKENIZER * tokenizers, tasks)),
            num_cpus=READER_CPUS,
        )
        with warnings.catch_warnings():
            # Ray 2.60 has no other way to say max_restarts, and tells to use one.
            warnings.simplefilter("ignore", RayDeprecationWarning)
            rows = rows.map_batches(
                TokenizeTexts,
                fn_constructor_args=(recipe,),
                compute=ActorPoolStrategy(size=tokenizers),
                batch_format="pyarrow",
                batch_size=None,
                num_cpus=TOKENIZER_CPUS,
                # Ray would restart them, but prints for each, past all log levels, that this may fail some day.
                max_restarts=0,
            )
        for table in rows.iter_batches(batch_format="pyarrow", batch_size=None):
            yield from results(table)


def read_items(asks: Sequence[Ask]) -> list[dict[str, Any]]:
    """What `read_texts` takes, neighbours in a file next to each other so that few tasks open it."""
    return [
        {
            "language": ask.language,
            "number": ask.number,
            "text_bytes": ask.text_bytes,
            # In JSON: Ray makes tensors of lists, as it sees fit.
            "spots": None if ask.spots is None else json.dumps(ask.spots),
        }
        for ask in sorted(asks, key=lambda ask: (ask.language, ask.number))
    ]


def read_texts(items: pa.Table, *, shards: Mapping[str, tuple[Shard, ...]], seed: int) -> Iterator[pa.Table]:
    """A row of TEXT for each unit and each passage; an error in the text travels as a row, for the driver to raise."""
    rows = items.to_pylist()
    try:
        for (language, whole), group in groupby(rows, key=lambda row: (row["language"], row["spots"] is None)):
            read = _units if whole else _passages
            for row in read(shards[language], list(group), seed):
                yield pa.Table.from_pylist([{"language": language, **row}], schema=TEXT)
    except InputError as error:
        yield pa.Table.from_pylist([{"error": str(error)}], schema=TEXT)


def _units(shards: Sequence[Shard], rows: Sequence[dict[str, Any]], seed: int) -> Iterator[dict[str, Any]]:
    places = [(shard, unit) for shard in shards for unit in range(shard.unit_count)]
    for name, group in groupby(rows, key=lambda row: places[row["number"]][0].name):
        numbers = [row["number"] for row in group]
        shard = places[numbers[0]][0]
        assert shard.name == name
        for number, documents in zip(numbers, shard.read([places[number][1] for number in numbers]), strict=True):
            yield {"number": number, **_texts(list(documents))}


def _passages(shards: Sequence[Shard], rows: Sequence[dict[str, Any]], seed: int) -> Iterator[dict[str, Any]]:
    for row in rows:
        spots = tuple(Spot(*spot) for spot in json.loads(row["spots"]))
        for passage in passages(shards, Ask(row["language"], row["number"], spots, row["text_bytes"]), seed):
            yield {
                "number": row["number"],
                **_texts(passage.documents),
                "spots": [spot.number for spot in passage.spots],
                "begin": passage.begin,
                "mass": passage.mass,
                "complete": passage.complete,
            }


def _texts(documents: Sequence[Document]) -> dict[str, Any]:
    return {
        "labels": [document.label for document in documents],
        "texts": [document.text for document in documents],
    }


class TokenizeTexts:
    """An actor that holds the tokenizer: a row of TOKENS for each unit, and for each excerpt of a passage."""

    def __init__(self, recipe: Recipe) -> None:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the actor has a part of a CPU, not all of the node's
        self.recipe = recipe
        self.tokenizer = DocumentTokenizer(recipe.tokenizer, recipe.join)

    def __call__(self, rows: pa.Table) -> Iterator[pa.Table]:
        for row in rows.to_pylist():
            for tokens in self._tokens(row):
                result = {**dict.fromkeys(TOKENS.names), "language": row["language"], "number": row["number"], **tokens}
                yield pa.Table.from_pydict({name: [value] for name, value in result.items()}, schema=TOKENS)

    def _tokens(self, row: dict[str, Any]) -> Iterator[dict[str, Any]]:
        if row["error"] is not None:
            yield {"error": row["error"]}
            return
        texts = zip(row["labels"], row["texts"], strict=True)
        documents = [Document(label, text, len(text.encode())) for label, text in texts]
        try:
            if row["spots"] is None:
                unit = unit_tokens(documents, self.tokenizer.tokenize)
                yield {**_columns(unit.stream), "lost_bytes": unit.lost_bytes}
                return
            spots = [Spot(number, 0.0) for number in row["spots"]]
            passage = Passage(spots, row["begin"], row["mass"], documents, row["complete"])
            recipe = self.recipe
            found = excerpts(passage, recipe.text_length, self.tokenizer.tokenize, row["language"], recipe.seed)
            for excerpt in found:
                own = {name: getattr(excerpt, name) for name in _OF_EXCERPTS}
                yield {**_columns(excerpt.stream), **own, "documents": excerpt.labels, "lengths": excerpt.lengths}
        except InputError as error:
            yield {"error": str(error)}


def _columns(stream: TokenStream) -> dict[str, Any]:
    return {
        "token_ids": stream.token_ids,
        "document_index": stream.document_index,
        "bytes": stream.bytes,
        "labels": [source.label for source in stream.sources],
        "digests": [source.digest for source in stream.sources],
        "beginnings": [source.beginning for source in stream.sources],
        "composed": [source.composed for source in stream.sources],
    }


def results(table: pa.Table) -> Iterator[Found]:
    """What each row of TOKENS holds. InputError where that is an error."""
    for position in range(table.num_rows):
        row = {name: table[name][position] for name in table.column_names}
        if row["error"].is_valid:
            raise InputError(row["error"].as_py())
        token_ids, document_index, sizes = (
            row[name].values.to_numpy().astype(np.int32) for name in ("token_ids", "document_index", "bytes")
        )
        columns = (row[name].as_py() for name in ("labels", "digests", "beginnings", "composed"))
        sources = tuple(Source(*fields) for fields in zip(*columns, strict=True))
        stream = TokenStream(token_ids, document_index, sizes, sources)
        result: UnitTokens | Excerpt
        if row["spot"].is_valid:
            own = {name: row[name].as_py() for name in _OF_EXCERPTS}
            labels, lengths = (tuple(row[name].as_py()) for name in ("documents", "lengths"))
            result = Excerpt(**own, stream=stream, labels=labels, lengths=lengths)
        else:
            result = UnitTokens(stream, row["lost_bytes"].as_py())
        yield row["language"].as_py(), row["number"].as_py(), result


def _quiet_context() -> DataContext:
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # warns that there are no progress bars
    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    return context
