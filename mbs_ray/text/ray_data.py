"""The drawing as one Ray Data pipeline: tasks read units, actors tokenize, the driver collects by unit."""

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
from ray.exceptions import RayActorError
from ray.util.annotations import RayDeprecationWarning

from mbs_ray.errors import InputError
from mbs_ray.text.shards import Document, Shard, Source
from mbs_ray.text.token_stream import TokenStream
from mbs_ray.text.tokenization import DocumentTokenizer, Join
from mbs_ray.text.unit_draw import Ask, UnitText, UnitTokens, generator, shuffled_documents, unit_tokens

# Together one CPU, so that neither waits for ever for the other; unequal, else Ray Data fuses readers into the actors.
READER_CPUS, TOKENIZER_CPUS = 0.4, 0.6
# Reading is far faster than tokenizing; many small tasks on few workers, since each new worker takes seconds to start.
TASKS_PER_TOKENIZER, READERS_PER_TOKENIZER = 8, 2
#: Of actors during one drawing.
DEATHS_ALLOWED = 4
TEXT = pa.schema(
    {
        "language": pa.string(),
        "unit": pa.int64(),
        "tokens": pa.int64(),
        "labels": pa.list_(pa.large_string()),
        "texts": pa.list_(pa.large_string()),
        "complete": pa.bool_(),
        "error": pa.string(),
    }
)
TOKENS = pa.schema(
    {
        "language": pa.string(),
        "unit": pa.int64(),
        "token_ids": pa.large_list(pa.int32()),
        "document_index": pa.large_list(pa.int32()),
        "bytes": pa.large_list(pa.int32()),
        "labels": pa.list_(pa.large_string()),
        "digests": pa.list_(pa.large_binary()),
        "beginnings": pa.list_(pa.large_string()),
        "composed": pa.list_(pa.bool_()),
        "exhausted": pa.bool_(),
        "lost_bytes": pa.int64(),
        "error": pa.string(),
    }
)


@dataclass(frozen=True)
class Recipe:
    """What the tokens of a unit depend on besides its text and what is asked of it.

    `text_length`: tokens of a segment besides those that begin it.
    """

    tokenizer: str
    text_length: int
    seed: int
    join: Join = "end_token"


@dataclass(frozen=True)
class Located:
    """An ask with the shard, and the unit in that shard, it is read from."""

    ask: Ask
    shard: int
    shard_unit: int


def gather(
    shards: Mapping[str, tuple[Shard, ...]],
    recipe: Recipe,
    tokenizers: int,
    wanted: Sequence[Located],
) -> Iterator[tuple[Ask, UnitTokens]]:
    """Yield the tokens of every unit asked for, in whatever order they arrive. InputError as the reader raised it.

    `tokenizers` actors share the tokenizing, and in proportion tasks the reading; that changes no token. Where an
    actor dies, what has not arrived is read again.
    """
    missing = {(located.ask.language, located.ask.unit): located for located in wanted}
    for deaths in range(1, DEATHS_ALLOWED + 1):
        try:
            for language, unit, result in _stream(shards, recipe, tokenizers, list(missing.values())):
                yield missing.pop((language, unit)).ask, result
            return
        except RayActorError:
            if deaths == DEATHS_ALLOWED:
                raise


def _stream(
    shards: Mapping[str, tuple[Shard, ...]], recipe: Recipe, tokenizers: int, wanted: Sequence[Located]
) -> Iterator[tuple[str, int, UnitTokens]]:
    items = unit_items(wanted)
    tokenizers = min(tokenizers, len(items))
    tasks = min(TASKS_PER_TOKENIZER * tokenizers, len(items))
    with DataContext.current(_quiet_context()):
        rows = ray.data.from_items(items, override_num_blocks=tasks).map_batches(
            read_units,
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
                TokenizeUnits,
                fn_constructor_args=(recipe,),
                compute=ActorPoolStrategy(size=tokenizers),
                batch_format="pyarrow",
                batch_size=None,
                num_cpus=TOKENIZER_CPUS,
                # Ray would restart them, but prints for each, past all log levels, that this may fail some day.
                max_restarts=0,
            )
        for table in rows.iter_batches(batch_format="pyarrow", batch_size=None):
            yield from unit_results(table)


def unit_items(wanted: Sequence[Located]) -> list[dict[str, Any]]:
    """What `read_units` takes, neighbours in a file next to each other so that few tasks open it."""
    return [
        {
            "language": located.ask.language,
            "unit": located.ask.unit,
            "tokens": located.ask.tokens,
            "text_bytes": located.ask.text_bytes,
            "shard": located.shard,
            "shard_unit": located.shard_unit,
        }
        for located in sorted(wanted, key=lambda located: (located.ask.language, located.ask.unit))
    ]


def read_units(items: pa.Table, *, shards: Mapping[str, tuple[Shard, ...]], seed: int) -> Iterator[pa.Table]:
    """One row of TEXT for each item; an error in the text travels as a row, for the driver to raise."""
    rows = items.to_pylist()
    for (language, shard), group in groupby(rows, key=lambda item: (item["language"], item["shard"])):
        located = list(group)
        units = shards[language][shard].read([item["shard_unit"] for item in located])
        try:
            for item, documents in zip(located, units, strict=True):
                text = _unit_text(documents, item, seed)
                row = {
                    "language": language,
                    "unit": item["unit"],
                    "tokens": item["tokens"],
                    "labels": [document.label for document in text.documents],
                    "texts": [document.text for document in text.documents],
                    "complete": text.complete,
                }
                yield pa.Table.from_pylist([row], schema=TEXT)
        except InputError as error:
            yield pa.Table.from_pylist([{"error": str(error)}], schema=TEXT)
            return


class TokenizeUnits:
    """An actor that holds the tokenizer: one row of TOKENS for each row of TEXT."""

    def __init__(self, recipe: Recipe) -> None:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the actor has a part of a CPU, not all of the node's
        self.recipe = recipe
        self.tokenizer = DocumentTokenizer(recipe.tokenizer, recipe.join)

    def __call__(self, rows: pa.Table) -> Iterator[pa.Table]:
        for row in rows.to_pylist():
            yield pa.Table.from_pydict({name: [value] for name, value in self._tokens(row).items()}, schema=TOKENS)

    def _tokens(self, row: dict[str, Any]) -> dict[str, Any]:
        result = {**dict.fromkeys(TOKENS.names), "language": row["language"], "unit": row["unit"]}
        if row["error"] is not None:
            return {**result, "error": row["error"]}
        documents = [
            Document(label, text, len(text.encode())) for label, text in zip(row["labels"], row["texts"], strict=True)
        ]
        try:
            tokens = unit_tokens(
                UnitText(documents, row["complete"]),
                row["tokens"],
                self.recipe.text_length,
                self.tokenizer.tokenize,
                generator(self.recipe.seed, row["language"], row["unit"], "start"),
            )
        except InputError as error:
            return {**result, "error": str(error)}
        return {
            **result,
            "token_ids": tokens.stream.token_ids,
            "document_index": tokens.stream.document_index,
            "bytes": tokens.stream.bytes,
            "labels": [source.label for source in tokens.stream.sources],
            "digests": [source.digest for source in tokens.stream.sources],
            "beginnings": [source.beginning for source in tokens.stream.sources],
            "composed": [source.composed for source in tokens.stream.sources],
            "exhausted": tokens.exhausted,
            "lost_bytes": tokens.lost_bytes,
        }


def unit_results(table: pa.Table) -> Iterator[tuple[str, int, UnitTokens]]:
    """(language, unit, tokens) of each row of TOKENS. InputError where a row holds an error."""
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
        result = UnitTokens(stream, row["exhausted"].as_py(), row["lost_bytes"].as_py())
        yield row["language"].as_py(), row["unit"].as_py(), result


def _unit_text(documents: Iterator[Document], item: Mapping[str, Any], seed: int) -> UnitText:
    if item["text_bytes"] is None:
        return UnitText(list(documents), complete=True)
    random = generator(seed, item["language"], item["unit"], "documents")
    return shuffled_documents(documents, item["text_bytes"], random)


def _quiet_context() -> DataContext:
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # warns that there are no progress bars
    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    return context
