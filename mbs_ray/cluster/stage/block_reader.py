"""Reading of a stage's blocks from disk, one ahead of the work."""

import time
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field

import torch

from mbs_ray.cluster.job import Compress, CompressStored
from mbs_ray.cluster.stage.stage_run import StageRun
from mbs_ray.compression.block_report import BlockReport
from mbs_ray.model.block_files import read_block
from mbs_ray.model.routes import Routes


@dataclass
class StageBlock:
    """A block being worked on: tensors by module name, dense, or as the run directory holds them if ``finished``.

    ``packed`` collects the integer forms of its linears, by the name of their weight; ``routes`` have counted the
    tokens of its experts.
    """

    tensors: dict[str, torch.Tensor]
    finished: bool
    report: BlockReport
    packed: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)
    routes: Routes | None = None

    @property
    def index(self) -> int:
        """Number of the block in the model, from 0."""
        return self.report.block


class BlockReader:
    """An iterable of a stage's blocks; reading of the first begins at once, of the next while one is computed."""

    def __init__(self, run: StageRun) -> None:
        self._run = run
        self._reading = self._read_ahead(run.blocks[0])

    def __iter__(self) -> Iterator[StageBlock]:
        for index in self._run.blocks:
            with self._run.timeline.part(self._run.job.key, index, "read"):
                block = self._reading.result()
            if index != self._run.blocks[-1]:
                self._reading = self._read_ahead(index + 1)
            yield self._agreed(block)

    def _read_ahead(self, index: int) -> "Future[StageBlock]":
        return self._run.process.ahead.submit(_read, self._run, index)

    def _agreed(self, block: StageBlock) -> StageBlock:
        """Return the block as all replicas have it: finished only if all of them found it finished.

        A shared folder may show a file to one node before it shows it to another.
        """
        finished = self._run.agree(block.index, block.finished)
        return block if finished == block.finished else read_dense(self._run, block.index)


def read_dense(run: StageRun, index: int) -> StageBlock:
    """Read a block of the dense model."""
    begun = time.monotonic()
    return _timed(StageBlock(run.decoder.read_block(index), False, BlockReport(index)), begun)


def _read(run: StageRun, index: int) -> StageBlock:
    begun = time.monotonic()
    compresses = isinstance(run.job.work, Compress | CompressStored)
    done = read_block(run.job.blocks_folder, index) if compresses else None
    if done is None:
        return read_dense(run, index)
    return _timed(StageBlock(run.decoder.from_stored(index, done), True, BlockReport(index)), begun)


def _timed(block: StageBlock, begun: float) -> StageBlock:
    block.report.seconds["read"] = time.monotonic() - begun
    return block
