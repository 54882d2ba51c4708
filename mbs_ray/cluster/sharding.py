"""Division of work: blocks among stages, in contiguous shards of about equal cost, and other pieces among workers."""

import itertools
from collections.abc import Sequence

from mbs_ray.errors import InputError
from mbs_ray.methods import Statistic
from mbs_ray.model.decoder import Decoder


def assign_longest_first(costs: Sequence[float], hands: int) -> list[int]:
    """Assign each cost to the worker (of ``hands``) with the least load so far, largest first (Graham 1969)."""
    load = [0.0] * hands
    dealt = [0] * len(costs)
    for piece in sorted(range(len(costs)), key=lambda one: -costs[one]):
        dealt[piece] = min(range(hands), key=load.__getitem__)
        load[dealt[piece]] += costs[piece]
    return dealt


def shard_blocks(costs: Sequence[float], last: float, stages: int) -> list[range]:
    """Split the blocks into contiguous shards so that the costliest stage is as cheap as possible.

    costs: of each block; last: what the last stage does besides (the head), in the same unit. Every stage gets at
    least one block; of equally good cuts the one is taken whose last stages have the fewest. Raises InputError where
    there are more stages than blocks.
    """
    blocks = len(costs)
    if stages > blocks:
        raise InputError(
            f"layout.stages: {stages} stages are more than the {blocks} blocks of the model; ask for fewer"
        )
    sums = [0.0]
    for cost in costs:
        sums.append(sums[-1] + cost)
    # Dynamic programme over the number s of stages: the best split of the first b blocks into s shards is, for some
    # start, the best split of the first start blocks into s - 1 shards, and then one shard from start to b.
    # best[b] is the cost of its costliest stage, cut[b] that start; O(stages · blocks²).
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
    # Walk back from the end: each row of cuts says where the last of the shards that remain begins.
    bounds = [blocks]
    for cut in reversed(cuts):
        bounds.append(cut[bounds[-1]])
    edges = [0, *reversed(bounds)]
    return [range(first, stop) for first, stop in itertools.pairwise(edges)]


def block_costs(decoder: Decoder, statistic: Statistic, calibrating: int, evaluating: int) -> list[float]:
    """Count the operations of each block in a run with this many tokens of calibration and of evaluation.

    Calibration segments go through a block twice, and into its moments; evaluation segments once. Attention
    is left out: it costs every block the same.
    """
    costs = []
    for index in range(decoder.blocks):
        # Shapes, and the share of the tokens that reaches the linear.
        linears = [(*shape, decoder.routed(index, name)) for name, shape in decoder.linears(index).items()]
        weights = sum(rows * columns * share for rows, columns, share in linears)
        cost = 2.0 * weights * (2 * calibrating + evaluating)
        if statistic is Statistic.FULL and calibrating:
            cost += sum(
                columns**2 * calibrating * share + columns**3 + rows * columns**2 for rows, columns, share in linears
            )
        costs.append(cost)
    return costs


def head_cost(decoder: Decoder, evaluating: int) -> float:
    """Count the operations of the head, which only evaluation segments reach."""
    return 2.0 * decoder.vocabulary * decoder.width * evaluating
