"""Which stage owns which blocks."""

import itertools

from mbs_ray.errors import InputError


def shard_blocks(blocks: int, stages: int) -> list[range]:
    """Contiguous shards of the blocks, as equal as can be, the longer ones first."""
    if stages > blocks:
        raise InputError(f"stages: {stages} stages are more than the {blocks} blocks of the model; ask for fewer")
    shortest, longer = divmod(blocks, stages)
    bounds = [0]
    for stage in range(stages):
        bounds.append(bounds[-1] + shortest + (stage < longer))
    return [range(first, last) for first, last in itertools.pairwise(bounds)]


def auto_microbatch(sequence_length: int, tokens: int = 4096) -> int:
    """Segments in one forward: about ``tokens`` tokens."""
    return max(1, tokens // sequence_length)
