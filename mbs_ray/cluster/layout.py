"""How many stages and replicas, and which stage owns which blocks."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from mbs_ray.errors import InputError


@dataclass(frozen=True)
class Layout:
    """`stages` contiguous shards of the blocks, each held by `replicas` actors that share a run's segments."""

    stages: int
    replicas: int

    @property
    def actors(self) -> int:
        return self.stages * self.replicas


def auto_layout(devices: int, runs: int, blocks: int, microbatches: int) -> Layout:
    """What keeps so many devices busy.

    Several runs keep several stages busy, one run at a time per stage; a single run goes no faster over stages, but
    its microbatches can be shared by replicas.
    """
    if runs > 1:
        return Layout(min(devices, blocks), 1)
    return Layout(1, max(1, min(devices, microbatches)))


def shard_blocks(costs: Sequence[float], last: float, stages: int) -> list[range]:
    """Contiguous shards of the blocks for which the costliest stage is cheapest.

    costs: of each block; last: what the last stage does besides (the head). Any unit. Every stage gets at least
    one block. Of equally good cuts, the first stages get the more blocks.
    """
    blocks = len(costs)
    if stages > blocks:
        raise InputError(f"stages: {stages} stages are more than the {blocks} blocks of the model; ask for fewer")
    sums = [0.0]
    for cost in costs:
        sums.append(sums[-1] + cost)
    # best[b] and cut[s][b]: the costliest of s stages that hold the first b blocks, and where the last begins.
    best = sums[:]
    cuts: list[list[int]] = []
    for stage in range(2, stages + 1):
        head = last if stage == stages else 0.0
        following, cut = [float("inf")] * (blocks + 1), [0] * (blocks + 1)
        for stop in range(stage, blocks + 1):
            for start in range(stage - 1, stop):
                costliest = max(best[start], sums[stop] - sums[start] + head)
                if costliest <= following[stop]:
                    following[stop], cut[stop] = costliest, start
        best = following
        cuts.append(cut)
    bounds = [blocks]
    for cut in reversed(cuts):
        bounds.append(cut[bounds[-1]])
    edges = [0, *reversed(bounds)]
    return [range(first, stop) for first, stop in itertools.pairwise(edges)]
