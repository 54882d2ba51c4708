"""A stage's work on a GPU, without one: blocks on the meta device, and no wait for it between microbatches."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mbs_ray.compression.collect import collect
from mbs_ray.compression.collect_drift import Pair, collect_with_drift
from mbs_ray.compression.layer_error import language_sums
from mbs_ray.evaluation.scoring import score
from mbs_ray.methods import Statistic
from mbs_ray.model.checkpoint import Checkpoint
from mbs_ray.model.decoder import Decoder
from tests.support.meta import META, HostReads

LENGTH = 8
Work = Callable[[Decoder, list[torch.Tensor]], object]


def moments(statistic: Statistic) -> Work:
    def work(decoder: Decoder, hidden: list[torch.Tensor]) -> object:
        block = decoder.load_block(0, decoder.read_block(0))
        return collect(decoder, block, 0, hidden, statistic)

    return work


def drifted(decoder: Decoder, hidden: list[torch.Tensor]) -> object:
    block = decoder.load_block(0, decoder.read_block(0))
    pairs = [Pair(one, one.clone(), torch.tensor([True, False])) for one in hidden]
    wide = [name for name, shape in decoder.linears(0).items() if shape[0] == decoder.width]
    return collect_with_drift(decoder, block, block, 0, pairs, lambda _: None, wide)


def propagated(decoder: Decoder, hidden: list[torch.Tensor]) -> object:
    block = decoder.load_block(0, decoder.read_block(0))
    return [decoder.run_block(block, 0, one) for one in hidden]


def scored(decoder: Decoder, hidden: list[torch.Tensor]) -> object:
    # Token ids wait in host memory, as in a stage.
    ids = torch.zeros(2, LENGTH, dtype=torch.int64)
    return score(decoder, [(decoder.finish(hidden[0]), ids)] * len(hidden))


def measured(decoder: Decoder, hidden: list[torch.Tensor]) -> object:
    block = decoder.load_block(0, decoder.read_block(0))
    changes = {
        name: torch.zeros(shape, dtype=torch.bfloat16, device=META) for name, shape in decoder.linears(0).items()
    }
    return language_sums(decoder, block, 0, [(("en", "sw"), one) for one in hidden], changes, ["en", "sw"])


@pytest.mark.parametrize(
    ("work", "per_microbatch"),
    [
        pytest.param(moments(Statistic.FULL), 0, id="full moments"),
        pytest.param(moments(Statistic.DIAGONAL), 0, id="diagonal moments"),
        pytest.param(drifted, 0, id="drifts from the dense model"),
        pytest.param(propagated, 0, id="propagate"),
        pytest.param(measured, 0, id="losses by language"),
        pytest.param(scored, 2, id="scores, which the host takes at the end"),
    ],
)
@pytest.mark.parametrize("model", ["bloom", "llama"])
def test_the_host_waits_as_often_for_many_microbatches_as_for_one(
    work: Work, per_microbatch: int, model: str, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(model)

    def waits(microbatches: int) -> int:
        with torch.inference_mode(), HostReads() as host:
            decoder = Decoder(Checkpoint(folder), torch.bfloat16, "meta")
            hidden = [torch.zeros(2, LENGTH, decoder.width, dtype=torch.bfloat16, device=META)] * microbatches
            work(decoder, hidden)
        return len(host.reads)

    one = waits(1)
    assert waits(5) - one == 4 * per_microbatch
