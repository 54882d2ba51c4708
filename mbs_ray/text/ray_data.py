"""The drawing as one Ray Data pipeline: tasks read units, others tokenize them, the driver collects by unit.

A task whose process or node dies is given to another by Ray; all of them give the same rows every time.
"""

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
from ray.data import DataContext, TaskPoolStrategy

from mbs_ray.errors import InputError
from mbs_ray.text.conversations import Chat, content_bytes
from mbs_ray.text.ray_deaths import DEATHS, stage_died
from mbs_ray.text.shards import Document, Shard, Source
from mbs_ray.text.token_stream import TokenStream
from mbs_ray.text.tokenization import DocumentTokenizer, Join
from mbs_ray.text.unit_draw import (
    Ask,
    Excerpt,
    Passage,
    Spot,
    UnitTokens,
    excerpts,
    passages,
    unit_conversations,
    unit_tokens,
)

# Together one CPU, so that neither waits for ever for the other; unequal, else Ray Data makes one task of both.
READER_CPUS, TOKENIZER_CPUS = 0.4, 0.6
# Reading is far faster than tokenizing; many small tasks on few workers, since each new worker takes seconds to start.
TASKS_PER_TOKENIZER, READERS_PER_TOKENIZER = 8, 2
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
        "lost_tokens": pa.int64(),
        "left_out": pa.int64(),
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


_OF_UNITS = ("lost_bytes", "lost_tokens", "left_out")
_OF_EXCERPTS = ("spot", "copy", "begin", "mass", "tokens", "start", "complete")
#: Language, number of the unit or part, what was found in it.
Found = tuple[str, int, UnitTokens | Excerpt]


@dataclass(frozen=True)
class Recipe:
    """What the tokens of a unit depend on besides its text and what is asked of it.

    `text_length`: tokens of a segment besides those that begin it; `tokenizer_digest`: of what the tokenizer makes of
    a text, as :class:`~mbs_ray.text.tokenization.TokenizerFacts` has it; of conversations, of its chat template too.
    """

    tokenizer: str
    tokenizer_digest: str
    text_length: int
    seed: int
    join: Join = "end_token"
    chat: Chat | None = None


def gather(
    shards: Mapping[str, tuple[Shard, ...]],
    recipe: Recipe,
    tokenizers: int,
    asks: Sequence[Ask],
) -> Iterator[Found]:
    """Yield the tokens of every unit and spot asked for, in whatever order they arrive.

    `tokenizers` tasks at a time share the tokenizing, and in proportion others the reading; that changes no token.
    InputError as the reader raised it. StageDiedError where Ray has given up to repeat what dies.
    """
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
        rows = rows.map_batches(
            tokenize_in_task,
            fn_kwargs={"recipe": recipe},
            batch_format="pyarrow",
            batch_size=None,
            compute=TaskPoolStrategy(size=tokenizers),
            num_cpus=TOKENIZER_CPUS,
        )
        try:
            for table in rows.iter_batches(batch_format="pyarrow", batch_size=None):
                yield from results(table)
        except DEATHS as error:
            raise stage_died("processes that draw text died again and again", error) from error


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


def tokenize_in_task(rows: pa.Table, *, recipe: Recipe) -> Iterator[pa.Table]:
    """Do as :func:`tokenize_texts` in one thread: a task has a part of a CPU, not all of the node's."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    yield from tokenize_texts(rows, recipe=recipe)


def tokenize_texts(rows: pa.Table, *, recipe: Recipe) -> Iterator[pa.Table]:
    """A row of TOKENS for each unit, and for each excerpt of a passage."""
    for row in rows.to_pylist():
        for tokens in _tokens(row, recipe):
            result = {**dict.fromkeys(TOKENS.names), "language": row["language"], "number": row["number"], **tokens}
            yield pa.Table.from_pydict({name: [value] for name, value in result.items()}, schema=TOKENS)


def _tokens(row: dict[str, Any], recipe: Recipe) -> Iterator[dict[str, Any]]:
    if row["error"] is not None:
        yield {"error": row["error"]}
        return
    texts = zip(row["labels"], row["texts"], strict=True)
    size = content_bytes if recipe.chat else lambda text: len(text.encode())
    documents = [Document(label, text, size(text)) for label, text in texts]
    try:
        tokenize = _tokenizer(recipe.tokenizer, recipe.join, recipe.chat, recipe.tokenizer_digest).tokenize
        if row["spots"] is None:
            if recipe.chat == "one_per_segment":
                unit = unit_conversations(documents, tokenize, recipe.text_length)
            else:
                unit = unit_tokens(documents, tokenize)
            yield {**_columns(unit.stream), **{name: getattr(unit, name) for name in _OF_UNITS}}
            return
        spots = [Spot(number, 0.0) for number in row["spots"]]
        passage = Passage(spots, row["begin"], row["mass"], documents, row["complete"])
        for excerpt in excerpts(passage, recipe.text_length, tokenize, row["language"], recipe.seed):
            own = {name: getattr(excerpt, name) for name in _OF_EXCERPTS}
            yield {**_columns(excerpt.stream), **own, "documents": excerpt.labels, "lengths": excerpt.lengths}
    except InputError as error:
        yield {"error": str(error)}


@lru_cache(maxsize=2)
def _tokenizer(name: str, join: Join, chat: Chat | None, digest: str) -> DocumentTokenizer:
    """Kept by the process from one task to the next, and from one drawing to the next as long as it is the same."""
    return DocumentTokenizer(name, join, chat)


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
            result = UnitTokens(stream, **{name: row[name].as_py() for name in _OF_UNITS})
        yield row["language"].as_py(), row["number"].as_py(), result


def _quiet_context() -> DataContext:
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # warns that there are no progress bars
    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    return context
