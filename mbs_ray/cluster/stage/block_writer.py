"""Writing of a solved block into the run directory."""

from pathlib import Path

from mbs_ray.cluster.stage.block_reader import StageBlock
from mbs_ray.cluster.stage.stage_run import StageRun
from mbs_ray.compression.block_report import write_block_report
from mbs_ray.model.block_files import record_digest, write_block
from mbs_ray.model.packed import packed_block
from mbs_ray.run.directory import RunDirectory


def write(run: StageRun, block: StageBlock) -> None:
    """Write report, packed and dense form of a block; the first replica does it for its stage.

    The dense block file comes last: where it exists, so does everything else of the block but its digest, which is
    made while the stage goes on.
    """
    if not run.writes:
        return
    job, decoder = run.job, run.decoder
    written: list[Path] = []
    with run.timed(block.report, "write"):
        write_block_report(job.blocks_folder, block.report)
        stored = decoder.to_stored(block.index, block.tensors)
        # Nothing can load the packed form of a Conv1D, or of experts in one tensor: mbs export says so.
        by_stored_name = {
            decoder.stored_weight(block.index, weight.removesuffix(".weight")): parts
            for weight, parts in block.packed.items()
        }
        if block.packed and None not in by_stored_name and not decoder.transposed(block.index):
            packed = packed_block(stored, {str(name): parts for name, parts in by_stored_name.items()})
            written.append(write_block(RunDirectory(job.directory).packed, block.index, packed))
        written.append(write_block(job.blocks_folder, block.index, stored))
    for path in written:
        # What fails here is only not recorded, and hashed when the checkpoint is assembled.
        run.process.hashing.submit(record_digest, path)
    run.process.blocks_done += 1
