"""The drawing in this process, for text that is little: the processes of Ray Data take longer to start."""

from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa

from mbs_ray.text.ray_data import Found, Recipe, read_items, read_texts, results, tokenize_texts
from mbs_ray.text.shards import Shard
from mbs_ray.text.unit_draw import Ask

#: Up to so many bytes of text are read and tokenized here: seconds, as long as Ray Data takes to begin.
HERE_BYTES = 32 * 2**20
#: Bytes that are decoded in the time in which one is tokenized.
_DECODED_PER_TOKENIZED = 16


def reading_bytes(shards: Mapping[str, Sequence[Shard]], asks: Sequence[Ask]) -> int:
    """Estimate how much text is read for the asks, in bytes that are tokenized.

    A unit is; of a part only what is at its spots, the rest is decoded on the way there. Where it must be fetched first
    the whole part counts.
    """
    parts = {name: [(one, extent) for one in own for extent in one.extents] for name, own in shards.items()}
    units = {name: max(1, sum(one.unit_count for one in own)) for name, own in shards.items()}
    total = 0.0
    for ask in asks:
        if ask.spots is None:
            total += sum(extent for _, extent in parts[ask.language]) / units[ask.language]
            continue
        shard, extent = parts[ask.language][ask.number]
        tokenized = extent if shard.remote else min(extent, len(ask.spots) * ask.text_bytes)
        total += tokenized + extent / _DECODED_PER_TOKENIZED
    return round(total)


def gather_here(shards: Mapping[str, tuple[Shard, ...]], recipe: Recipe, asks: Sequence[Ask]) -> Iterator[Found]:
    """Yield what :func:`~mbs_ray.text.ray_data.gather` does, one unit after the other and without Ray."""
    for text in read_texts(pa.Table.from_pylist(read_items(asks)), shards=shards, seed=recipe.seed):
        for table in tokenize_texts(text, recipe=recipe):
            yield from results(table)
