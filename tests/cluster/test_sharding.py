"""Shards of the blocks against every other way to cut them, and what blocks and head cost."""

import itertools
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mbs_ray.cluster.layout import Layout, resolve_layout
from mbs_ray.cluster.sharding import block_costs, head_cost, shard_blocks
from mbs_ray.errors import InputError
from mbs_ray.methods import Statistic
from mbs_ray.model.checkpoint import Checkpoint
from mbs_ray.model.decoder import Decoder
from tests.support.examples import examples


def costliest(costs: list[float], last: float, shards: list[range]) -> float:
    sums = [sum(costs[block] for block in shard) for shard in shards]
    return max([*sums[:-1], sums[-1] + last])


@examples(150)
@given(costs=st.lists(st.integers(1, 9), min_size=1, max_size=8), last=st.integers(0, 12), data=st.data())
def test_no_other_cut_has_a_cheaper_costliest_stage(costs: list[float], last: float, data: st.DataObject) -> None:
    stages = data.draw(st.integers(1, len(costs)))
    shards = shard_blocks(costs, last, stages)
    assert [block for shard in shards for block in shard] == list(range(len(costs)))
    assert len(shards) == stages and all(shards)
    cuts = itertools.combinations(range(1, len(costs)), stages - 1)
    others = [[range(a, b) for a, b in itertools.pairwise((0, *cut, len(costs)))] for cut in cuts]
    assert costliest(costs, last, shards) == min(costliest(costs, last, other) for other in others)


def test_equal_blocks_are_dealt_out_as_equally_as_can_be() -> None:
    assert [len(shard) for shard in shard_blocks([1.0] * 70, 0.0, 8)] == [9, 9, 9, 9, 9, 9, 9, 7]
    assert [len(shard) for shard in shard_blocks([1.0] * 4, 0.0, 4)] == [1, 1, 1, 1]


def test_a_costly_head_takes_blocks_from_the_last_stage() -> None:
    assert [len(shard) for shard in shard_blocks([1.0] * 8, 3.0, 2)] == [6, 2]
    assert [len(shard) for shard in shard_blocks([1.0] * 8, 100.0, 2)] == [7, 1]


def test_more_stages_than_blocks_are_refused() -> None:
    with pytest.raises(InputError, match="5 stages are more than the 4 blocks"):
        shard_blocks([1.0] * 4, 0.0, 5)


def test_costs_count_two_passes_of_calibration_moments_solver_and_one_pass_of_evaluation(bloom: Path) -> None:
    decoder = Decoder(Checkpoint(bloom), torch.float32)
    shapes = decoder.linears(0).values()
    weights = sum(rows * columns for rows, columns in shapes)
    assert block_costs(decoder, Statistic.NONE, 0, 10) == [20.0 * weights] * decoder.blocks
    diagonal = block_costs(decoder, Statistic.DIAGONAL, 100, 10)[0]
    assert diagonal == 2.0 * weights * 210
    full = block_costs(decoder, Statistic.FULL, 100, 10)[0]
    assert full - diagonal == sum(100 * c**2 + c**3 + r * c**2 for r, c in shapes)
    assert head_cost(decoder, 10) == 20.0 * decoder.vocabulary * decoder.checkpoint.config.hidden_size


@pytest.mark.parametrize(
    ("asked", "actors", "runs", "layout"),
    [
        ((None, None), 8, 9, (8, 1)),  # a sweep: stages
        ((None, None), 8, 1, (1, 8)),  # a single run: replicas
        ((None, None), 8, 2, (2, 4)),
        ((None, None), 8, 3, (3, 2)),  # what cannot be shared out evenly is left idle
        ((None, None), 64, 99, (24, 2)),  # no more stages than blocks
        ((None, None), 64, 1, (1, 20)),  # nor replicas than microbatches
        ((None, None), 0, 5, (1, 1)),
        ((4, None), 8, 1, (4, 1)),
        ((None, 2), 8, 9, (4, 2)),
        ((None, 16), 8, 9, (1, 16)),
        ((3, 5), 1, 1, (3, 5)),
    ],
)
def test_a_layout_keeps_what_there_is_busy(
    asked: tuple[int | None, int | None], actors: int, runs: int, layout: tuple[int, int]
) -> None:
    assert resolve_layout(*asked, actors=actors, runs=runs, blocks=24, microbatches=20) == Layout(*layout)


def test_more_replicas_than_microbatches_are_refused() -> None:
    with pytest.raises(InputError, match=r"layout\.replicas: 4 replicas want a microbatch .* a run has 3"):
        resolve_layout(1, 4, actors=8, runs=1, blocks=4, microbatches=3)


def test_actors_are_counted_stage_by_stage() -> None:
    places = Layout(2, 3).places()
    assert [(place.stage, place.replica) for place in places] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    assert [place.first for place in places] == [True] * 3 + [False] * 3
    assert [place.last for place in places] == [False] * 3 + [True] * 3
    assert str(places[4]) == "stage 2 replica 2"
    assert str(Layout(2).places()[1]) == "stage 2"
