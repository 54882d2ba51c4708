"""The drawing in this process, for text that is little: the processes of Ray Data take longer to start."""

from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa

from mbs_ray.text.ray_data import Found, Recipe, read_items, read_texts, results, tokenize_texts
from mbs_ray.text.shards import Shard
from mbs_ray.text.unit_draw import Ask

#: Up to so many bytes of text a corpus is read and tokenized here: seconds, as long as Ray Data takes to begin.
HERE_BYTES = 32 * 2**20


def gather_here(shards: Mapping[str, tuple[Shard, ...]], recipe: Recipe, asks: Sequence[Ask]) -> Iterator[Found]:
    """Yield what :func:`~mbs_ray.text.ray_data.gather` does, one unit after the other and without Ray."""
    for text in read_texts(pa.Table.from_pylist(read_items(asks)), shards=shards, seed=recipe.seed):
        for table in tokenize_texts(text, recipe=recipe):
            yield from results(table)
