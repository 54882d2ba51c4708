"""How many stages and replicas there are, and which stage owns which blocks: shards of about equal cost."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from mbs_ray.errors import InputError
from mbs_ray.methods import Statistic
from mbs_ray.model.decoder import Decoder


@dataclass(frozen=True)
class Layout:
    """``stages`` contiguous shards of the blocks, each held by ``replicas`` actors that share a run's segments.

    Actors are counted stage by stage: replica r of stage s is number ``s * replicas + r``.
    """

    stages: int = 1
    replicas: int = 1

    @property
    def actors(self) -> int:
        return self.stages * self.replicas

    def places(self) -> "list[Place]":
        return [Place(stage, replica, self) for stage in range(self.stages) for replica in range(self.replicas)]

    def __str__(self) -> str:
        return f"{self.stages} × {self.replicas} (stages × replicas)"


@dataclass(frozen=True)
class Place:
    """Which actor of a layout one is; stage and replica count from 0."""

    stage: int
    replica: int
    layout: Layout

    @property
    def first(self) -> bool:
        return self.stage == 0

    @property
    def last(self) -> bool:
        return self.stage == self.layout.stages - 1

    def __str__(self) -> str:
        """As people count."""
        alone = self.layout.replicas == 1
        return f"stage {self.stage + 1}" if alone else f"stage {self.stage + 1} replica {self.replica + 1}"


def resolve_layout(
    stages: int | None, replicas: int | None, *, actors: int, runs: int, blocks: int, microbatches: int
) -> Layout:
    """What is asked for, with None settled so that up to ``actors`` (GPUs, or nodes of CPUs) are busy.

    Several runs keep several stages busy, one run in each; stages give a single run no speed-up, but replicas share
    its ``microbatches`` of calibration. So there are at most as many stages as runs, and replicas of a stage are as
    many as are left. Who asks for a number of stages alone gets one replica of each.
    """
    if stages is None:
        stages = max(1, min(actors // (replicas or 1), runs, blocks))
        replicas = replicas or max(1, min(actors // stages, microbatches))
    replicas = replicas or 1
    if replicas > microbatches:
        raise InputError(
            f"layout.replicas: {replicas} replicas want a microbatch of calibration each, a run has {microbatches}; "
            "ask for fewer replicas or a smaller microbatch"
        )
    return Layout(stages, replicas)


def deal(costs: Sequence[float], hands: int) -> list[int]:
    """To whom each piece of work is dealt: the costliest first, to who has the least."""
    load = [0.0] * hands
    dealt = [0] * len(costs)
    for piece in sorted(range(len(costs)), key=lambda one: -costs[one]):
        dealt[piece] = min(range(hands), key=load.__getitem__)
        load[dealt[piece]] += costs[piece]
    return dealt


def shard_blocks(costs: Sequence[float], last: float, stages: int) -> list[range]:
    """Contiguous shards of the blocks for which the costliest stage is cheapest.

    costs: of each block; last: what the last stage does besides (the head). Any unit. Every stage gets at least
    one block; of equally good cuts the one is taken whose last stages have the fewest. InputError where there are
    more stages than blocks.
    """
    blocks = len(costs)
    if stages > blocks:
        raise InputError(
            f"layout.stages: {stages} stages are more than the {blocks} blocks of the model; ask for fewer"
        )
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


def block_costs(decoder: Decoder, statistic: Statistic, calibrating: int, evaluating: int) -> list[float]:
    """Operations of each block of a run with so many tokens of calibration and of evaluation.

    Calibration segments go through a block twice, and through its moments; evaluation segments once. Attention
    is left out: it costs every block the same.
    """
    costs = []
    for index in range(decoder.blocks):
        shapes = decoder.linears(index).values()
        weights = sum(rows * columns for rows, columns in shapes)
        cost = 2.0 * weights * (2 * calibrating + evaluating)
        if statistic is Statistic.FULL and calibrating:
            cost += sum(columns**2 * calibrating + columns**3 + rows * columns**2 for rows, columns in shapes)
        costs.append(cost)
    return costs


def head_cost(decoder: Decoder, evaluating: int) -> float:
    """Operations of the head, which only evaluation segments reach."""
    return 2.0 * decoder.vocabulary * decoder.width * evaluating
