"""The loop of the whole system: what a stage does with each of its blocks, one step under the other."""

from mbs_ray.cluster.job import Collect, Compress, CompressStored, JobText, Route, Score, Try
from mbs_ray.cluster.stage.block_measuring import measure
from mbs_ray.cluster.stage.block_reader import BlockReader, StageBlock, read_dense
from mbs_ray.cluster.stage.block_solver import collect, report_routes, solve, solving_groups
from mbs_ray.cluster.stage.block_writer import write
from mbs_ray.cluster.stage.dense_beside import collect_beside, propagate_dense
from mbs_ray.cluster.stage.dense_collecting import collect_pool
from mbs_ray.cluster.stage.dense_routing import count_routes
from mbs_ray.cluster.stage.stage_run import StageRun, read_tokens
from mbs_ray.cluster.stage.stage_scoring import score_evaluation
from mbs_ray.compression.block_report import block_report_file, write_block_report
from mbs_ray.methods import build_method


def take_through(run: StageRun) -> None:
    """Take a run through the blocks of this stage.

    1. embed      the first stage looks up the embedding of every token
    2. read       a block, while the one before it is computed; a finished one as the run directory holds it
    3. collect    second moments of its linears' inputs, in a forward of the dense block, or from files; where linears
                  are fitted to the dense model, its hidden states beside them
    4. solve      every linear, dealt out to the replicas
    5. measure    what each language loses, if requested
    6. write      the compressed block, and its report; its digest follows while the stage goes on
    7. propagate  all segments through the block as it was written: the input of the next one
    8. score      the last stage: nll of every evaluation token
    """
    work = run.job.work
    if isinstance(work, Try):
        _try(run, work)
        return
    if isinstance(work, CompressStored) and not run.place.first:
        # Blocks do not wait for each other: all are solved before the first microbatch has come this far.
        for block in BlockReader(run):
            _compress(run, work, block)
    blocks = BlockReader(run)
    if run.place.first:
        _embed(run)
    for block in blocks:
        match work:
            case Compress() | CompressStored():
                if block.finished and isinstance(work, Compress) and work.fit is not None:
                    propagate_dense(run, work.fit, block.index)
                _compress(run, work, block)
                _propagate(run, block)
                _report(run, block)
            case Collect():
                collect_pool(run, work, block)  # and propagates, in the same forward
            case Route():
                count_routes(run, work, block)  # and propagates, in the same forward
            case Score():
                _propagate(run, block)
    if run.place.last:
        with run.timeline.part(run.job.key, run.decoder.blocks, "evaluate"):
            score_evaluation(run)
    run.wait_for_digests()


def _compress(run: StageRun, work: Compress | CompressStored, block: StageBlock) -> None:
    """Do steps 3 to 6; a block that the run directory already holds is left as it is."""
    if block.finished:
        return
    _solve_and_measure(run, work, block)
    write(run, block)


def _solve_and_measure(run: StageRun, work: Compress | CompressStored, block: StageBlock) -> None:
    """Do steps 3 to 5. The dense weights are held until they end, and not while the block is written."""
    method = build_method(work.method)
    dense = dict(block.tensors)
    fit = work.fit if isinstance(work, Compress) else None
    groups = solving_groups(run, work, method, block)
    for group in groups:
        if fit is None:
            collected = collect(run, work, method, block, group)
        else:
            collected = collect_beside(run, fit, block, dense, group, passes_on=group is groups[-1])
        solve(run, method, block, group, collected, fit, work.amounts)
    report_routes(run, block)
    measure(run, work, block, dense)


def _try(run: StageRun, work: Try) -> None:
    """Solve the blocks only for their reports; a block whose report exists is not solved again."""
    method = build_method(work.method)
    for index in run.blocks:
        if run.agree(index, block_report_file(run.job.blocks_folder, index).is_file()):
            continue
        with run.timeline.part(run.job.key, index, "read"):
            block = read_dense(run, index)
        dense = dict(block.tensors)
        for group in solving_groups(run, work, method, block):
            solve(run, method, block, group, collect(run, work, method, block, group))
        measure(run, work, block, dense)
        _report(run, block)


def _embed(run: StageRun) -> None:
    with run.timeline.part(run.job.key, -1, "embed"):
        for microbatch in run.follow(-1, "embed", run.microbatches):
            run.store.put(microbatch.index, 0, run.decoder.embed(read_tokens(microbatch)))


def _propagate(run: StageRun, block: StageBlock) -> None:
    """Compute the input of the next block, kept here or handed to the next stage."""
    skipped: tuple[JobText, ...] = ()
    if block.index == run.job.blocks[-1][-1]:
        # Nothing follows the last block but the head, which calibration segments never see.
        skipped = run.job.learned
    elif isinstance(run.job.work, Compress) and run.job.work.fit is not None:
        skipped = (run.job.work.fit.dense,)
    microbatches = [one for one in run.microbatches if all(one.file is not text for text in skipped)]
    with run.timed(block.report, "propagate"):
        module = run.decoder.load_block(block.index, block.tensors)
        for microbatch in run.follow(block.index, "propagate", microbatches):
            hidden = run.decoder.run_block(module, block.index, run.get(microbatch, block.index))
            run.pass_on(microbatch, block.index, hidden)


def _report(run: StageRun, block: StageBlock) -> None:
    """Write the report of a block that this command solved, with all of its seconds."""
    if run.writes and not block.finished:
        write_block_report(run.job.blocks_folder, block.report)
