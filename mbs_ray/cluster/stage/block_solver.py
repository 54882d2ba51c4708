"""What a stage does with a block: linears solved, on all replicas, measured, and written."""

import torch

from mbs_ray.cluster.sharding import assign_longest_first
from mbs_ray.cluster.stage.dense_collecting import measure_stored
from mbs_ray.cluster.stage.stage_run import StageRun, StageStatus
from mbs_ray.compression.block_report import BlockReport, write_block_report
from mbs_ray.compression.collect import Collected, collect, sequential_groups
from mbs_ray.compression.layer_error import LayerError, language_sums, layer_errors, weight_changes
from mbs_ray.compression.solve import Solved, check_called, solve, solving_costs
from mbs_ray.compression.stored_moments import RunMoments
from mbs_ray.methods import Method, Statistic
from mbs_ray.model.block_files import write_block
from mbs_ray.model.packed import packed_block
from mbs_ray.run.directory import RunDirectory


def compress_block(
    run: StageRun,
    method: Method,
    report: BlockReport,
    tensors: dict[str, torch.Tensor],
) -> dict[str, dict[str, torch.Tensor]]:
    """Replace the weights of all linears in ``tensors``, give their packed forms, and report what they lost."""
    job, decoder = run.job, run.decoder
    index, packed = report.block, {}
    linears = list(decoder.linears(index))
    dense = dict(tensors) if job.per_language else {}
    for turn in _groups(run, method, index, tensors):
        collected: Collected | RunMoments
        if job.moments and method.statistic is not Statistic.NONE:
            collected = RunMoments(job.moments, index)
        else:
            with run.timed(report, "collect"):
                calibrating = run.follow(index, "collect", run.calibrating)
                hidden = (run.get(microbatch, index) for microbatch in calibrating)
                block = decoder.load_block(index, tensors)
                collected = collect(decoder, block, index, hidden, method.statistic, turn)
                del block
        solved = _solve(run, method, report, tensors, turn, collected)
        tensors.update(solved.weights)
        packed.update(solved.packed)
        report.linears += solved.reports
    report.linears.sort(key=lambda linear: linears.index(linear.name))
    if job.per_language:
        report.layer_error = _measure(run, report, dense, tensors)
    return packed


def write_solved(
    run: StageRun,
    tensors: dict[str, torch.Tensor],
    packed: dict[str, dict[str, torch.Tensor]],
    report: BlockReport,
) -> None:
    """The block file last: where it lies, all else of the block lies too."""
    job, decoder = run.job, run.decoder
    index = report.block
    write_block_report(job.blocks_folder, report)
    stored = decoder.to_stored(index, tensors)
    # Nothing can load the packed form of a Conv1D: mbs export says so.
    if packed and not decoder.transposed(index):
        names = decoder.block_tensors(index)
        by_stored_name = {names[weight]: parts for weight, parts in packed.items()}
        write_block(RunDirectory(job.directory).packed, index, packed_block(stored, by_stored_name))
    write_block(job.blocks_folder, index, stored)


def _measure(
    run: StageRun,
    report: BlockReport,
    dense: dict[str, torch.Tensor],
    compressed: dict[str, torch.Tensor],
) -> list[LayerError]:
    """What each linear loses in each language; whole at replica 0."""
    job, decoder = run.job, run.decoder
    index, linears = report.block, list(decoder.linears(report.block))
    if job.calibration is None:
        with run.timed(report, "measure"):
            sums = measure_stored(run, index, linears, dense, compressed)
        with run.exchanged(report, "reduce"):
            run.agree(index)
            run.replicas.add_up(sums)
        return layer_errors(sums, [source.language for source in job.measured], linears)
    languages = list(dict.fromkeys(job.calibration.languages))
    with run.timed(report, "measure"):
        calibrating = run.follow(index, "measure", run.calibrating)
        hidden = ((one.languages, run.get(one, index)) for one in calibrating)
        block = decoder.load_block(index, dense)
        changed = weight_changes(decoder, linears, dense, compressed)
        sums = language_sums(decoder, block, index, hidden, changed, languages)
        del block, changed
    with run.exchanged(report, "reduce"):
        run.agree(index)
        run.replicas.add_up(sums)
    return layer_errors(sums, languages, linears)


def _solve(
    run: StageRun,
    method: Method,
    report: BlockReport,
    tensors: dict[str, torch.Tensor],
    turn: list[str],
    collected: Collected | RunMoments,
) -> Solved:
    """Linears of a block, dealt out to the replicas; all of them have all weights at the end."""
    decoder = run.decoder
    where, statistic, inputs = f"block {report.block}", method.statistic, collected.inputs()
    check_called(turn, inputs, statistic, where)
    costs = solving_costs(decoder.linears(report.block), turn, inputs, statistic)
    dealt = assign_longest_first([cost for _, cost in costs], run.replicas.size)
    owners = {name: owner for (group, _), owner in zip(costs, dealt, strict=True) for name in group}
    own = [name for name in turn if owners[name] == run.replicas.rank]
    if isinstance(collected, RunMoments):
        with run.timed(report, "collect"):
            collected = collected.read(own, decoder.device)
    else:
        with run.exchanged(report, "reduce"):
            run.agree(report.block)
            collected = run.replicas.gather(collected, owners)
    with run.timed(report, "solve"):
        run.tell(StageStatus(run.job.key, report.block, "solve", 0, 1))
        solved = solve(tensors, own, collected, method, decoder.device, where)
    with run.exchanged(report, "broadcast"):
        run.agree(report.block)
        return run.replicas.share(solved, owners, tensors)


def _groups(
    run: StageRun,
    method: Method,
    index: int,
    tensors: dict[str, torch.Tensor],
) -> list[list[str]]:
    """Linears that are solved after one forward: all, or in a true sequence those that share an input."""
    job, decoder = run.job, run.decoder
    if not job.true_sequential or method.statistic is Statistic.NONE:
        return [list(decoder.linears(index))]
    first = run.calibrating[0]
    hidden = run.store.get(first.index, index, decoder.device)
    return sequential_groups(decoder, decoder.load_block(index, tensors), index, hidden)
