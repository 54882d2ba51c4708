"""What a stage does with a run: plain computing, no actor; the stage hands in where microbatches go."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from mbs_ray.calibration.segment_file import SegmentSet
from mbs_ray.cluster.activations import ActivationStore
from mbs_ray.cluster.host_memory import return_freed_memory
from mbs_ray.cluster.job import Job, Microbatch
from mbs_ray.cluster.timeline import Timeline
from mbs_ray.compression import collect, solve, turns
from mbs_ray.methods import Method, Statistic, build_method
from mbs_ray.model.block_files import read_block, write_block
from mbs_ray.model.checkpoint import Checkpoint
from mbs_ray.model.decoder import Decoder
from mbs_ray.model.packed import packed_block
from mbs_ray.report import BlockReport, write_report
from mbs_ray.run_directory import RunDirectory
from mbs_ray.scoring import score
from mbs_ray.token_scores import write_token_scores

_HOST = torch.device("cpu")
#: Takes the input of a block: (microbatch index, block, hidden states).
Send = Callable[[int, int, torch.Tensor], None]


@dataclass(frozen=True)
class Status:
    """Where a stage is: ``done`` of ``total`` microbatches in ``part`` of a block of a run."""

    run: str = ""
    block: int = -1
    part: str = "idle"
    done: int = 0
    total: int = 0
    language: str = ""


class Worker:
    """The blocks of one stage of ``stages``, on the device of this process, with ``threads`` CPU threads."""

    def __init__(self, index: int, stages: int, threads: int) -> None:
        self._index, self._stages, self._threads = index, stages, threads
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._decoder: tuple[tuple, Decoder] | None = None
        self._ahead = ThreadPoolExecutor(1)
        self.status = Status()
        self.timeline = Timeline()
        return_freed_memory()

    def process(self, job: Job, store: ActivationStore, send: Send | None) -> None:
        """Take a run through this stage's blocks; ``send`` is given what the next stage receives."""
        # Per thread, and the concurrency groups of an actor have threads of their own.
        torch.set_num_threads(self._threads)
        torch.backends.cuda.matmul.allow_tf32 = False
        try:
            with torch.inference_mode():
                self._process(job, store, send)
        finally:
            self.status = Status()

    def _process(self, job: Job, store: ActivationStore, send: Send | None) -> None:
        decoder = self._load_decoder(job)
        method = None if job.method is None else build_method(job.method)
        blocks = job.blocks[self._index]
        reading = self._ahead.submit(_read, job, decoder, blocks[0])
        if self._index == 0:
            with self.timeline.part(job.key, -1, "embed"):
                for microbatch in self._follow(job, -1, "embed", job.microbatches()):
                    token_ids = _token_ids(microbatch)
                    store.put(microbatch.index, 0, decoder.embed(token_ids))
        for index in blocks:
            with self.timeline.part(job.key, index, "read"):
                stored = reading.result()
            if index != blocks[-1]:
                reading = self._ahead.submit(_read, job, decoder, index + 1)
            self._block(job, store, decoder, method, index, stored, send if index == blocks[-1] else None)
        if self._index == self._stages - 1:
            with self.timeline.part(job.key, decoder.blocks, "evaluate"):
                self._evaluate(job, store, decoder)

    def _block(
        self,
        job: Job,
        store: ActivationStore,
        decoder: Decoder,
        method: Method | None,
        index: int,
        stored: "_Stored",
        send: Send | None,
    ) -> None:
        """One block; one that the run directory already holds is only propagated through."""
        report = BlockReport(index, seconds={"read": stored.seconds})
        names, tensors = decoder.block_tensors(index), stored.tensors
        solving = method is not None and not stored.finished
        if method is not None and solving:
            packed = self._compress(job, store, decoder, method, report, tensors)
            with self._timed(job, report, "write"):
                dense = {names[name]: tensors[name] for name in names}
                # The block file last: where it lies, all else of the block lies too.
                write_report(job.blocks_folder, report)
                if packed:
                    by_stored_name = {names[weight]: parts for weight, parts in packed.items()}
                    write_block(RunDirectory(job.directory).packed, index, packed_block(dense, by_stored_name))
                write_block(job.blocks_folder, index, dense)
        with self._timed(job, report, "propagate"):
            self._propagate(job, store, decoder, index, tensors, send)
        if solving:
            write_report(job.blocks_folder, report)

    @contextmanager
    def _timed(self, job: Job, report: BlockReport, part: str) -> Iterator[None]:
        with report.timed(part), self.timeline.part(job.key, report.block, part):
            yield

    def _compress(
        self,
        job: Job,
        store: ActivationStore,
        decoder: Decoder,
        method: Method,
        report: BlockReport,
        tensors: dict[str, torch.Tensor],
    ) -> dict[str, dict[str, torch.Tensor]]:
        """Replace the weights of all linears in ``tensors``, give their packed forms, and report what they lost."""
        index, packed = report.block, {}
        linears = list(decoder.linears(index))
        for turn in self._turns(job, store, decoder, method, index, tensors):
            with self._timed(job, report, "collect"):
                calibrating = self._follow(job, index, "collect", job.calibrating())
                hidden = (self._get(job, store, microbatch, index) for microbatch in calibrating)
                block = decoder.load_block(index, tensors)
                collected = collect(decoder, block, index, hidden, method.statistic, turn)
                del block
            with self._timed(job, report, "solve"):
                self.status = Status(job.key, index, "solve", 0, 1)
                solved = solve(tensors, turn, collected, method, self._device, f"block {index}")
            tensors.update(solved.weights)
            packed.update(solved.packed)
            report.linears += solved.reports
        report.linears.sort(key=lambda linear: linears.index(linear.name))
        return packed

    def _turns(
        self,
        job: Job,
        store: ActivationStore,
        decoder: Decoder,
        method: Method,
        index: int,
        tensors: dict[str, torch.Tensor],
    ) -> list[list[str]]:
        """Linears that are solved after one forward: all, or in a true sequence those that share an input."""
        if not job.true_sequential or method.statistic is Statistic.NONE:
            return [list(decoder.linears(index))]
        first = job.calibrating()[0]
        hidden = store.get(first.index, index, self._device)
        return turns(decoder, decoder.load_block(index, tensors), index, hidden)

    def _propagate(
        self,
        job: Job,
        store: ActivationStore,
        decoder: Decoder,
        index: int,
        tensors: dict[str, torch.Tensor],
        send: Send | None,
    ) -> None:
        """Input of the next block, kept here or handed to the next stage."""
        block = decoder.load_block(index, tensors)
        microbatches = job.microbatches()
        if index == job.blocks[-1][-1]:
            # Nothing follows the last block but the head, which calibration segments never see.
            microbatches = [one for one in microbatches if one.file is not job.calibration]
        for microbatch in self._follow(job, index, "propagate", microbatches):
            hidden = decoder.run_block(block, index, self._get(job, store, microbatch, index))
            if send is None:
                store.put(microbatch.index, index + 1, hidden)
            else:
                with self.timeline.part(job.key, index, "send"):
                    send(microbatch.index, index + 1, hidden)
                store.pop(microbatch.index)

    def _evaluate(self, job: Job, store: ActivationStore, decoder: Decoder) -> None:
        end = decoder.blocks
        for file, microbatches in job.evaluating():
            for microbatch in self._follow(job, end, "evaluate", microbatches):
                hidden = self._get(job, store, microbatch, end)
                store.put(microbatch.index, end + 1, decoder.finish(hidden))
            pairs = _Finished(store, end + 1, [(one.index, _token_ids(one)) for one in microbatches])
            write_token_scores(job.scores_file(file.name), SegmentSet.open(file.path), score(decoder, pairs))

    def _follow(self, job: Job, block: int, part: str, microbatches: list[Microbatch]) -> Iterator[Microbatch]:
        """The microbatches one by one, telling whoever asks where this stage is."""
        for done, microbatch in enumerate(microbatches):
            self.status = Status(job.key, block, part, done, len(microbatches), microbatch.language)
            yield microbatch

    def _get(self, job: Job, store: ActivationStore, microbatch: Microbatch, block: int) -> torch.Tensor:
        """The input of a block; raises :class:`RunAbandonedError` where the run was given up."""
        with self.timeline.part(job.key, block, "receive"):
            store.wait(microbatch.index)
        return store.get(microbatch.index, block, self._device)

    def _load_decoder(self, job: Job) -> Decoder:
        key = (job.model, job.compute_dtype)
        if self._decoder is None or self._decoder[0] != key:
            dtype = getattr(torch, job.compute_dtype)
            self._decoder = (key, Decoder(Checkpoint(job.model), dtype, str(self._device)))
        return self._decoder[1]


@dataclass(frozen=True)
class _Stored:
    """A block as it lies on the disk: dense, or as the run directory holds it ``finished``."""

    tensors: dict[str, torch.Tensor]
    finished: bool
    seconds: float


def _read(job: Job, decoder: Decoder, index: int) -> _Stored:
    """Read a block in another thread while the one before is computed."""
    begun = time.monotonic()
    done = None if job.method is None else read_block(job.blocks_folder, index)
    if done is None:
        tensors = decoder.read_block(index)
    else:
        tensors = {name: done[stored] for name, stored in decoder.block_tensors(index).items()}
    return _Stored(tensors, done is not None, time.monotonic() - begun)


@dataclass(frozen=True)
class _Finished:
    """What is scored, microbatch by microbatch; every pass over it asks the store again, so that none is held."""

    store: ActivationStore
    block: int
    token_ids: list[tuple[int, torch.Tensor]]

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for index, token_ids in self.token_ids:
            yield self.store.get(index, self.block, _HOST), token_ids


def _token_ids(microbatch: Microbatch) -> torch.Tensor:
    rows = SegmentSet.open(microbatch.file.path).rows(microbatch.start, microbatch.stop)
    return torch.from_numpy(rows.token_ids.astype(np.int64))
