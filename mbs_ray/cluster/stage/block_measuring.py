"""The error of each linear of a block in each language, measured by the replicas of a stage together."""

from collections.abc import Mapping, Sequence

import torch

from mbs_ray.cluster.job import Compress, CompressStored, Try
from mbs_ray.cluster.sharding import assign_longest_first
from mbs_ray.cluster.stage.block_reader import StageBlock
from mbs_ray.cluster.stage.stage_run import StageRun
from mbs_ray.compression.layer_error import language_sums, layer_errors, weight_changes
from mbs_ray.compression.stored_moments import Source, stored_language_sums


def measure(
    run: StageRun, work: Compress | CompressStored | Try, block: StageBlock, dense: Mapping[str, torch.Tensor]
) -> None:
    """Report what each linear lost in each language, if requested; complete at replica 0.

    ``dense``: the tensors of the block before they were compressed.
    """
    linears = list(run.decoder.linears(block.index))
    match work:
        case Compress(per_language=True):
            languages = list(dict.fromkeys(work.calibration.languages))
            with run.timed(block.report, "measure"):
                sums = _calibration_sums(run, work, block, dense, languages)
        case CompressStored(measured=measured) | Try(measured=measured) if measured:
            languages = [source.language for source in measured]
            with run.timed(block.report, "measure"):
                sums = _stored_sums(run, measured, block, dense, linears)
        case _:
            return
    with run.exchanged(block.report, "reduce"):
        run.agree(block.index)
        run.replicas.add_up(sums)
    block.report.layer_error = layer_errors(sums, languages, linears)


def _calibration_sums(
    run: StageRun, work: Compress, block: StageBlock, dense: Mapping[str, torch.Tensor], languages: Sequence[str]
) -> torch.Tensor:
    """Compute :func:`language_sums` over this replica's calibration segments, in one forward of the dense block."""
    decoder = run.decoder
    calibrating = run.follow(block.index, "measure", run.microbatches_of(work.calibration))
    hidden = ((one.languages, run.get(one, block.index)) for one in calibrating)
    module = decoder.load_block(block.index, dict(dense))
    changed = weight_changes(decoder, decoder.linears(block.index), dense, block.tensors)
    return language_sums(decoder, module, block.index, hidden, changed, languages)


def _stored_sums(
    run: StageRun,
    measured: Sequence[Source],
    block: StageBlock,
    dense: Mapping[str, torch.Tensor],
    linears: Sequence[str],
) -> torch.Tensor:
    """Compute :func:`stored_language_sums` of the linears assigned to this replica, zeros for the others."""
    owners = assign_longest_first([1.0] * len(linears), run.replicas.size)
    own = [name for name, owner in zip(linears, owners, strict=True) if owner == run.replicas.rank]
    changes = {
        name: (block.tensors[f"{name}.weight"].float() - dense[f"{name}.weight"].float()).to(run.decoder.device)
        for name in own
    }
    return stored_language_sums(measured, block.index, changes, linears)
