"""What a stage does with a run: plain computing, no actor; the stage hands in where microbatches go."""

from concurrent.futures import ThreadPoolExecutor

import torch

from mbs_ray.cluster.activations.host_memory import return_large_tensors
from mbs_ray.cluster.activations.store import ActivationStore
from mbs_ray.cluster.job import Job
from mbs_ray.cluster.layout import StagePlace
from mbs_ray.cluster.stage.block_solver import compress_block, write_solved
from mbs_ray.cluster.stage.dense_collecting import collect_dense
from mbs_ray.cluster.stage.replicas import SingleReplica
from mbs_ray.cluster.stage.stage_run import Send, StageRun, StageStatus
from mbs_ray.cluster.stage.stage_scoring import read_tokens, score_evaluation, token_ids_of
from mbs_ray.cluster.stage.stored_blocks import StoredBlock, read_dense, read_stored
from mbs_ray.cluster.stage.timeline import Timeline
from mbs_ray.compression.block_report import BlockReport, block_report_file, write_block_report
from mbs_ray.compression.device import exact_forward, forward_device
from mbs_ray.methods import Method, build_method
from mbs_ray.model.checkpoint import Checkpoint
from mbs_ray.model.decoder import Decoder


class Worker:
    """The blocks of one stage, on the device of this process, with ``threads`` CPU threads.

    ``replicas`` are the others that hold the same blocks: each takes its microbatches through them, their moments
    are summed, and each solves linears for all. The first one writes.
    """

    def __init__(self, place: StagePlace, threads: int, replicas: SingleReplica | None = None) -> None:
        self._place, self._threads = place, threads
        self.replicas = replicas or SingleReplica()
        self._device = forward_device()
        self._decoder: tuple[tuple, Decoder] | None = None
        self._ahead = ThreadPoolExecutor(1)
        self.status = StageStatus()
        self.timeline = Timeline()
        #: Blocks written, and tokens taken through a block, since the start.
        self.blocks_done = 0
        self.tokens_done = 0
        return_large_tensors()

    def process(self, job: Job, store: ActivationStore, send: Send | None) -> None:
        """Take a run through this stage's blocks; ``send`` is given what the next stage receives."""
        # Not once: the concurrency groups of an actor have threads of their own.
        exact_forward(self._threads)
        method = None if job.method is None else build_method(job.method)
        try:
            with torch.inference_mode():
                run = self.stage_run(job, store, send)
                if job.trial and method is not None:
                    self._try(run, method)
                else:
                    self._process(run, method)
        finally:
            self.status = StageStatus()

    def stage_run(self, job: Job, store: ActivationStore, send: Send | None) -> StageRun:
        """A run as this worker takes it."""
        decoder = self._load_decoder(job)
        return StageRun(
            job, self._place, self.replicas, decoder, store, send, self.timeline, self._tell, self._count_tokens
        )

    def _tell(self, status: StageStatus) -> None:
        self.status = status

    def _count_tokens(self, tokens: int) -> None:
        self.tokens_done += tokens

    def _process(self, run: StageRun, method: Method | None) -> None:
        job, decoder, blocks = run.job, run.decoder, run.blocks
        if job.moments is not None and not self._place.first:
            # Blocks do not wait for each other: all are solved before the first microbatch has come this far.
            for index in blocks:
                self._solved(run, method, BlockReport(index), read_stored(job, decoder, index))
        reading = self._ahead.submit(read_stored, job, decoder, blocks[0])
        if self._place.first:
            with self.timeline.part(job.key, -1, "embed"):
                for microbatch in run.follow(-1, "embed", run.microbatches):
                    token_ids = token_ids_of(microbatch)
                    run.store.put(microbatch.index, 0, decoder.embed(read_tokens(token_ids, microbatch)))
        for index in blocks:
            with self.timeline.part(job.key, index, "read"):
                stored = reading.result()
            if index != blocks[-1]:
                reading = self._ahead.submit(read_stored, job, decoder, index + 1)
            self._block(run, method, index, stored)
        if self._place.last:
            with self.timeline.part(job.key, decoder.blocks, "evaluate"):
                score_evaluation(run)

    def _block(self, run: StageRun, method: Method | None, index: int, stored: StoredBlock) -> None:
        """One block; one that the run directory already holds is only propagated through."""
        if run.job.targets:
            collect_dense(run, index, stored.tensors)
            return
        report = BlockReport(index)
        tensors, solving = self._solved(run, method, report, stored)
        with run.timed(report, "propagate"):
            _propagate(run, index, tensors)
        if solving and run.writes:
            write_block_report(run.job.blocks_folder, report)

    def _solved(
        self, run: StageRun, method: Method | None, report: BlockReport, stored: StoredBlock
    ) -> tuple[dict[str, torch.Tensor], bool]:
        """The tensors of a block as they are propagated through, and whether they were solved and written just now."""
        index = report.block
        finished = run.agree(index, stored.finished)
        if stored.finished and not finished:
            # A shared folder may show a file to one node before it shows it to another.
            stored = read_dense(run.decoder, index)
        report.seconds["read"] = stored.seconds
        tensors = stored.tensors
        if method is None or finished:
            return tensors, False
        packed = compress_block(run, method, report, tensors)
        if run.writes:
            with run.timed(report, "write"):
                write_solved(run, tensors, packed, report)
            self.blocks_done += 1
        return tensors, True

    def _try(self, run: StageRun, method: Method) -> None:
        """Solve the blocks for the sake of their reports alone."""
        for index in run.blocks:
            if run.agree(index, block_report_file(run.job.blocks_folder, index).is_file()):
                continue
            report = BlockReport(index)
            with run.timed(report, "read"):
                tensors = read_dense(run.decoder, index).tensors
            compress_block(run, method, report, tensors)
            if run.writes:
                write_block_report(run.job.blocks_folder, report)

    def _load_decoder(self, job: Job) -> Decoder:
        key = (job.model, job.compute_dtype)
        if self._decoder is None or self._decoder[0] != key:
            dtype = getattr(torch, job.compute_dtype)
            self._decoder = (key, Decoder(Checkpoint(job.model), dtype, str(self._device)))
        return self._decoder[1]


def _propagate(run: StageRun, index: int, tensors: dict[str, torch.Tensor]) -> None:
    """Input of the next block, kept here or handed to the next stage."""
    block = run.decoder.load_block(index, tensors)
    microbatches = run.microbatches
    if index == run.job.blocks[-1][-1]:
        # Nothing follows the last block but the head, which calibration segments never see.
        microbatches = [one for one in microbatches if one.file is not run.job.calibration]
    for microbatch in run.follow(index, "propagate", microbatches):
        run.pass_on(microbatch, index, run.decoder.run_block(block, index, run.get(microbatch, index)))
