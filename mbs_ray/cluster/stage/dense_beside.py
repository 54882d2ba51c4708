"""The dense model's hidden states beside those of the compressed one, for linears that are fitted to it."""

from collections.abc import Iterator, Mapping

import torch

from mbs_ray.cluster.job import Compress, Fit
from mbs_ray.cluster.stage.block_reader import StageBlock, read_dense
from mbs_ray.cluster.stage.stage_run import StageRun
from mbs_ray.compression.collect import Collected
from mbs_ray.compression.collect_drift import Pair, collect_with_drift, held_out, residual_writers


def collect_beside(
    run: StageRun, fit: Fit, block: StageBlock, dense: Mapping[str, torch.Tensor], group: list[str], passes_on: bool
) -> Collected:
    """Collect moments and drifts at these linears, in a forward of the block as it is and one of the dense block.

    ``passes_on``: what the dense block gives becomes the dense input of the next one.
    """
    decoder, index = run.decoder, block.index
    following = run.microbatches_of(fit.dense) if passes_on and index != run.job.blocks[-1][-1] else None

    def pairs() -> Iterator[Pair]:
        assert isinstance(run.job.work, Compress)
        calibrating = run.microbatches_of(run.job.work.calibration)
        for own, other in zip(run.follow(index, "collect", calibrating), run.microbatches_of(fit.dense), strict=True):
            held = held_out(own.start, own.stop) if fit.strength is None else None
            yield Pair(run.get(own, index), run.get(other, index), held)

    def pass_on(hidden: torch.Tensor) -> None:
        if following is not None:
            run.pass_on(following.pop(0), index, hidden)

    with run.timed(block.report, "collect"):
        module = decoder.load_block(index, block.tensors)
        # In a true sequence some of its linears are compressed already.
        same = all(block.tensors[name] is tensor for name, tensor in dense.items())
        dense_module = module if same else decoder.load_block(index, dict(dense))
        writers = residual_writers(decoder, dense_module, index)
        return collect_with_drift(decoder, module, dense_module, index, pairs(), pass_on, writers, group)


def propagate_dense(run: StageRun, fit: Fit, index: int) -> None:
    """Compute the dense input of the next block where this one was finished by an earlier command."""
    if index == run.job.blocks[-1][-1]:
        return
    block = read_dense(run, index)
    with run.timed(block.report, "propagate"):
        module = run.decoder.load_block(index, block.tensors)
        for microbatch in run.follow(index, "propagate", run.microbatches_of(fit.dense)):
            run.pass_on(microbatch, index, run.decoder.run_block(module, index, run.get(microbatch, index)))
