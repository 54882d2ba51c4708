"""The drawing in this process, for text that is little: the processes of Ray Data take longer to start."""

from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa

from mbs_ray.text.ray_data import Found, Recipe, read_items, read_texts, results, tokenize_texts
from mbs_ray.text.shards import Shard
from mbs_ray.text.unit_draw import Ask

#: Up to so many bytes of text are read and tokenized here: seconds, as long as Ray Data takes to begin.
HERE_BYTES = 32 * 2**20


def reading_bytes(shards: Mapping[str, Sequence[Shard]], asks: Sequence[Ask]) -> int:
    """Estimate how much text is read for the asks, in bytes that are tokenized: a unit counts as the mean of all."""
    parts, means = {}, {}
    for language, own in shards.items():
        parts[language] = [(shard, part) for shard in own for part in range(len(shard.extents))]
        units = max(1, sum(shard.unit_count for shard in own))
        means[language] = sum(sum(shard.extents) for shard in own) / units
    total = 0.0
    for ask in asks:
        if ask.spots is None:
            total += means[ask.language]
        else:
            shard, part = parts[ask.language][ask.number]
            total += shard.spot_bytes(part, len(ask.spots) * ask.text_bytes)
    return round(total)


def gather_here(shards: Mapping[str, tuple[Shard, ...]], recipe: Recipe, asks: Sequence[Ask]) -> Iterator[Found]:
    """Yield what :func:`~mbs_ray.text.ray_data.gather` does, one unit after the other and without Ray."""
    for text in read_texts(pa.Table.from_pylist(read_items(asks)), shards=shards, seed=recipe.seed):
        for table in tokenize_texts(text, recipe=recipe):
            yield from results(table)
