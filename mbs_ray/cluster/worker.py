"""What a stage does with a run: plain computing, no actor; the stage hands in where microbatches go."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from mbs_ray.calibration.segment_file import SegmentSet
from mbs_ray.cluster.activations import ActivationStore
from mbs_ray.cluster.host_memory import return_freed_memory, return_large_tensors
from mbs_ray.cluster.job import Job, Microbatch
from mbs_ray.cluster.layout import Place, deal
from mbs_ray.cluster.replicas import Alone
from mbs_ray.cluster.statistics import Passage, collect_dense, measure_stored
from mbs_ray.cluster.timeline import Timeline
from mbs_ray.compression import (
    Collected,
    Solved,
    check_called,
    collect,
    language_sums,
    layer_errors,
    solve,
    solving_costs,
    turns,
    weight_changes,
)
from mbs_ray.dense_statistics import RunMoments
from mbs_ray.methods import Method, Statistic, build_method
from mbs_ray.model.block_files import read_block, write_block
from mbs_ray.model.checkpoint import Checkpoint
from mbs_ray.model.decoder import Decoder
from mbs_ray.model.packed import packed_block
from mbs_ray.report import BlockReport, LayerError, report_file, write_report
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
    """The blocks of one stage, on the device of this process, with ``threads`` CPU threads.

    ``replicas`` are the others that hold the same blocks: each takes its microbatches through them, their moments
    are summed, and each solves linears for all. The first one writes.
    """

    def __init__(self, place: Place, threads: int, replicas: Alone | None = None) -> None:
        self._place, self._threads = place, threads
        self.replicas = replicas or Alone()
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._decoder: tuple[tuple, Decoder] | None = None
        self._ahead = ThreadPoolExecutor(1)
        self.status = Status()
        self.timeline = Timeline()
        #: Blocks written, and tokens taken through a block, since the start.
        self.blocks_done = 0
        self.tokens_done = 0
        return_large_tensors()

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
        blocks = job.blocks[self._place.stage]
        if job.trial and method is not None:
            for index in blocks:
                self._try(job, store, decoder, method, index)
            return
        if job.moments is not None and not self._place.first:
            # Blocks do not wait for each other: all are solved before the first microbatch has come this far.
            for index in blocks:
                self._solved(job, store, decoder, method, BlockReport(index), _read(job, decoder, index))
        reading = self._ahead.submit(_read, job, decoder, blocks[0])
        if self._place.first:
            with self.timeline.part(job.key, -1, "embed"):
                for microbatch in self._follow(job, -1, "embed", self._microbatches(job)):
                    token_ids = _token_ids(microbatch)
                    store.put(microbatch.index, 0, decoder.embed(_read_tokens(token_ids, microbatch)))
        for index in blocks:
            with self.timeline.part(job.key, index, "read"):
                stored = reading.result()
            if index != blocks[-1]:
                reading = self._ahead.submit(_read, job, decoder, index + 1)
            self._block(job, store, decoder, method, index, stored, send if index == blocks[-1] else None)
        if self._place.last:
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
        if job.targets:
            passage = Passage(
                follow=partial(self._follow, job, index, "collect"),
                get=lambda microbatch: self._get(job, store, microbatch, index),
                pass_on=lambda microbatch, hidden: self._pass_on(job, store, index, microbatch, hidden, send),
                agree=partial(self._agree, job, index),
            )
            collect_dense(job, decoder, index, stored.tensors, passage, self.replicas, self.timeline)
            return
        report = BlockReport(index)
        tensors, solving = self._solved(job, store, decoder, method, report, stored)
        with self._timed(job, report, "propagate"):
            self._propagate(job, store, decoder, index, tensors, send)
        if solving and self._writes:
            write_report(job.blocks_folder, report)

    def _solved(
        self,
        job: Job,
        store: ActivationStore,
        decoder: Decoder,
        method: Method | None,
        report: BlockReport,
        stored: "_Stored",
    ) -> tuple[dict[str, torch.Tensor], bool]:
        """The tensors of a block as they are propagated through, and whether they were solved and written just now."""
        index = report.block
        finished = self._agree(job, index, stored.finished)
        if stored.finished and not finished:
            # A shared folder may show a file to one node before it shows it to another.
            stored = _read_dense(decoder, index)
        report.seconds["read"] = stored.seconds
        tensors = stored.tensors
        if method is None or finished:
            return tensors, False
        packed = self._compress(job, store, decoder, method, report, tensors)
        if self._writes:
            with self._timed(job, report, "write"):
                self._write(job, decoder, tensors, packed, report)
            self.blocks_done += 1
        return tensors, True

    def _try(self, job: Job, store: ActivationStore, decoder: Decoder, method: Method, index: int) -> None:
        """Solve a block for the sake of its report alone."""
        if self._agree(job, index, report_file(job.blocks_folder, index).is_file()):
            return
        report = BlockReport(index)
        with self._timed(job, report, "read"):
            tensors = _read_dense(decoder, index).tensors
        self._compress(job, store, decoder, method, report, tensors)
        if self._writes:
            write_report(job.blocks_folder, report)

    @property
    def _writes(self) -> bool:
        return self._place.replica == 0

    def _write(
        self,
        job: Job,
        decoder: Decoder,
        tensors: dict[str, torch.Tensor],
        packed: dict[str, dict[str, torch.Tensor]],
        report: BlockReport,
    ) -> None:
        """The block file last: where it lies, all else of the block lies too."""
        index = report.block
        write_report(job.blocks_folder, report)
        stored = decoder.to_stored(index, tensors)
        # Nothing can load the packed form of a Conv1D: mbs export says so.
        if packed and not decoder.transposed(index):
            names = decoder.block_tensors(index)
            by_stored_name = {names[weight]: parts for weight, parts in packed.items()}
            write_block(RunDirectory(job.directory).packed, index, packed_block(stored, by_stored_name))
        write_block(job.blocks_folder, index, stored)

    @contextmanager
    def _timed(self, job: Job, report: BlockReport, part: str) -> Iterator[None]:
        with report.timed(part), self.timeline.part(job.key, report.block, part):
            yield
            return_freed_memory()

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
        dense = dict(tensors) if job.per_language else {}
        for turn in self._turns(job, store, decoder, method, index, tensors):
            collected: Collected | RunMoments
            if job.moments and method.statistic is not Statistic.NONE:
                collected = RunMoments(job.moments, index)
            else:
                with self._timed(job, report, "collect"):
                    calibrating = self._follow(job, index, "collect", job.calibrating(self._place.replica))
                    hidden = (self._get(job, store, microbatch, index) for microbatch in calibrating)
                    block = decoder.load_block(index, tensors)
                    collected = collect(decoder, block, index, hidden, method.statistic, turn)
                    del block
            solved = self._solve(job, decoder, method, report, tensors, turn, collected)
            tensors.update(solved.weights)
            packed.update(solved.packed)
            report.linears += solved.reports
        report.linears.sort(key=lambda linear: linears.index(linear.name))
        if job.per_language:
            report.layer_error = self._measure(job, store, decoder, report, dense, tensors)
        return packed

    def _measure(
        self,
        job: Job,
        store: ActivationStore,
        decoder: Decoder,
        report: BlockReport,
        dense: dict[str, torch.Tensor],
        compressed: dict[str, torch.Tensor],
    ) -> list[LayerError]:
        """What each linear loses in each language; whole at replica 0."""
        index, linears = report.block, list(decoder.linears(report.block))
        if job.calibration is None:
            with self._timed(job, report, "measure"):
                sums = measure_stored(job, self.replicas, index, linears, dense, compressed, self._device)
            with self._exchanged(job, report, "reduce"):
                self._agree(job, index)
                self.replicas.add_up(sums)
            return layer_errors(sums, [source.language for source in job.measured], linears)
        languages = list(dict.fromkeys(job.calibration.languages))
        with self._timed(job, report, "measure"):
            calibrating = self._follow(job, index, "measure", job.calibrating(self._place.replica))
            hidden = ((one.languages, self._get(job, store, one, index)) for one in calibrating)
            block = decoder.load_block(index, dense)
            changed = weight_changes(decoder, linears, dense, compressed)
            sums = language_sums(decoder, block, index, hidden, changed, languages)
            del block, changed
        with self._exchanged(job, report, "reduce"):
            self._agree(job, index)
            self.replicas.add_up(sums)
        return layer_errors(sums, languages, linears)

    def _solve(
        self,
        job: Job,
        decoder: Decoder,
        method: Method,
        report: BlockReport,
        tensors: dict[str, torch.Tensor],
        turn: list[str],
        collected: Collected | RunMoments,
    ) -> Solved:
        """Linears of a block, dealt out to the replicas; all of them have all weights at the end."""
        where, statistic, inputs = f"block {report.block}", method.statistic, collected.inputs()
        check_called(turn, inputs, statistic, where)
        costs = solving_costs(decoder.linears(report.block), turn, inputs, statistic)
        dealt = deal([cost for _, cost in costs], self.replicas.size)
        owners = {name: owner for (group, _), owner in zip(costs, dealt, strict=True) for name in group}
        own = [name for name in turn if owners[name] == self.replicas.rank]
        if isinstance(collected, RunMoments):
            with self._timed(job, report, "collect"):
                collected = collected.read(own, self._device)
        else:
            with self._exchanged(job, report, "reduce"):
                self._agree(job, report.block)
                collected = self.replicas.gather(collected, owners)
        with self._timed(job, report, "solve"):
            self.status = Status(job.key, report.block, "solve", 0, 1)
            solved = solve(tensors, own, collected, method, self._device, where)
        with self._exchanged(job, report, "broadcast"):
            self._agree(job, report.block)
            return self.replicas.share(solved, owners, tensors)

    def _agree(self, job: Job, block: int, yes: bool = True) -> bool:
        """Wait for the other replicas: whether all say yes."""
        if self.replicas.size == 1:
            return yes
        with self.timeline.part(job.key, block, "meet"):
            return self.replicas.agree(yes)

    @contextmanager
    def _exchanged(self, job: Job, report: BlockReport, part: str) -> Iterator[None]:
        """Timed only where there is somebody to exchange with."""
        with nullcontext() if self.replicas.size == 1 else self._timed(job, report, part):
            yield

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
        first = job.calibrating(self._place.replica)[0]
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
        microbatches = self._microbatches(job)
        if index == job.blocks[-1][-1]:
            # Nothing follows the last block but the head, which calibration segments never see.
            microbatches = [one for one in microbatches if one.file is not job.calibration]
        for microbatch in self._follow(job, index, "propagate", microbatches):
            hidden = decoder.run_block(block, index, self._get(job, store, microbatch, index))
            self._pass_on(job, store, index, microbatch, hidden, send)

    def _pass_on(
        self,
        job: Job,
        store: ActivationStore,
        index: int,
        microbatch: Microbatch,
        hidden: torch.Tensor,
        send: Send | None,
    ) -> None:
        if send is None:
            store.put(microbatch.index, index + 1, hidden)
        else:
            with self.timeline.part(job.key, index, "send"):
                send(microbatch.index, index + 1, hidden)
            store.pop(microbatch.index)

    def _evaluate(self, job: Job, store: ActivationStore, decoder: Decoder) -> None:
        end = decoder.blocks
        evaluating = list(job.evaluating(self._place.replica))
        together = [microbatch for _, microbatches in evaluating for microbatch in microbatches]
        for microbatch in self._follow(job, end, "evaluate", together):
            hidden = self._get(job, store, microbatch, end)
            store.put(microbatch.index, end + 1, decoder.finish(hidden))
        pairs = _Finished(store, end + 1, [(one.index, _token_ids(one)) for one in together])
        # All files at once, or the head would be read anew for each.
        scored = iter(score(decoder, pairs) if together else [])
        for file, microbatches in evaluating:
            segments = SegmentSet.open(file.path)
            nll = torch.zeros(len(segments), segments.sequence_length - 1)
            likeliest = torch.zeros_like(nll)
            for microbatch in microbatches:
                rows = slice(microbatch.start, microbatch.stop)
                nll[rows], likeliest[rows] = next(scored)
            self._agree(job, end)
            self.replicas.add_up(nll)
            if file.requests:
                self.replicas.add_up(likeliest)
            if self._writes:
                kept = likeliest.bool() if file.requests else None
                write_token_scores(job.scores_file(file.name), segments, [nll], kept)

    def _microbatches(self, job: Job) -> list[Microbatch]:
        return job.microbatches(self._place.replica)

    def _follow(self, job: Job, block: int, part: str, microbatches: list[Microbatch]) -> Iterator[Microbatch]:
        """The microbatches one by one, telling whoever asks where this stage is."""
        for done, microbatch in enumerate(microbatches):
            self.status = Status(job.key, block, part, done, len(microbatches), microbatch.language)
            yield microbatch

    def _get(self, job: Job, store: ActivationStore, microbatch: Microbatch, block: int) -> torch.Tensor:
        """The input of a block; raises :class:`RunAbandonedError` where the run was given up."""
        if not store.holds(microbatch.index):
            with self.timeline.part(job.key, block, "receive"):
                store.wait(microbatch.index)
        hidden = store.get(microbatch.index, block, self._device)
        self.tokens_done += hidden.shape[0] * hidden.shape[1]
        return hidden

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
        return _read_dense(decoder, index)
    return _Stored(decoder.from_stored(index, done), True, time.monotonic() - begun)


def _read_dense(decoder: Decoder, index: int) -> _Stored:
    begun = time.monotonic()
    return _Stored(decoder.read_block(index), False, time.monotonic() - begun)


@dataclass(frozen=True)
class _Finished:
    """What is scored, microbatch by microbatch; every pass over it asks the store again, so that none is held."""

    store: ActivationStore
    block: int
    token_ids: list[tuple[int, torch.Tensor]]

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for index, token_ids in self.token_ids:
            yield self.store.get(index, self.block, _HOST), token_ids


def _read_tokens(token_ids: torch.Tensor, microbatch: Microbatch) -> torch.Tensor:
    """Those of a microbatch that go through the blocks."""
    return token_ids[:, :-1] if microbatch.file.requests else token_ids


def _token_ids(microbatch: Microbatch) -> torch.Tensor:
    rows = SegmentSet.open(microbatch.file.path).rows(microbatch.start, microbatch.stop)
    return torch.from_numpy(rows.token_ids.astype(np.int64))
