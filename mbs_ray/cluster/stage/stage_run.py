"""One run in one stage: how its microbatches come and go, and who is told where it is."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch

from mbs_ray.cluster.activations.host_memory import return_freed_memory
from mbs_ray.cluster.activations.store import ActivationStore
from mbs_ray.cluster.job import Job, Microbatch
from mbs_ray.cluster.layout import StagePlace
from mbs_ray.cluster.stage.replicas import SingleReplica
from mbs_ray.cluster.stage.timeline import Timeline
from mbs_ray.compression.block_report import BlockReport
from mbs_ray.model.decoder import Decoder

#: Takes the input of a block: (microbatch index, block, hidden states).
Send = Callable[[int, int, torch.Tensor], None]


@dataclass(frozen=True)
class StageStatus:
    """Where a stage is: ``done`` of ``total`` microbatches in ``part`` of a block of a run."""

    run: str = ""
    block: int = -1
    part: str = "idle"
    done: int = 0
    total: int = 0
    language: str = ""


@dataclass(eq=False)
class StageRun:
    """A job on its way through the blocks of one stage, on one replica of it.

    ``send`` is given what the next stage receives, None in the last one; ``tell`` where the run is, ``count`` the
    tokens that were taken through a block.
    """

    job: Job
    place: StagePlace
    replicas: SingleReplica
    decoder: Decoder
    store: ActivationStore
    send: Send | None
    timeline: Timeline
    tell: Callable[[StageStatus], None]
    count: Callable[[int], None]

    @property
    def blocks(self) -> range:
        return self.job.blocks[self.place.stage]

    @property
    def writes(self) -> bool:
        return self.place.replica == 0

    @property
    def microbatches(self) -> list[Microbatch]:
        return self.job.microbatches(self.place.replica)

    @property
    def calibrating(self) -> list[Microbatch]:
        return self.job.calibrating(self.place.replica)

    def follow(self, block: int, part: str, microbatches: list[Microbatch]) -> Iterator[Microbatch]:
        """The microbatches one by one, telling whoever asks where this stage is."""
        for done, microbatch in enumerate(microbatches):
            self.tell(StageStatus(self.job.key, block, part, done, len(microbatches), microbatch.language))
            yield microbatch

    def get(self, microbatch: Microbatch, block: int) -> torch.Tensor:
        """The input of a block; raises :class:`RunAbandonedError` where the run was given up."""
        if not self.store.holds(microbatch.index):
            with self.timeline.part(self.job.key, block, "receive"):
                self.store.wait(microbatch.index)
        hidden = self.store.get(microbatch.index, block, self.decoder.device)
        self.count(hidden.shape[0] * hidden.shape[1])
        return hidden

    def pass_on(self, microbatch: Microbatch, block: int, hidden: torch.Tensor) -> None:
        """What a block made: kept here for the next one, or handed to the next stage."""
        if self.send is None or block != self.blocks[-1]:
            self.store.put(microbatch.index, block + 1, hidden)
            return
        with self.timeline.part(self.job.key, block, "send"):
            self.send(microbatch.index, block + 1, hidden)
        self.store.pop(microbatch.index)

    def agree(self, block: int, yes: bool = True) -> bool:
        """Wait for the other replicas: whether all say yes."""
        if self.replicas.size == 1:
            return yes
        with self.timeline.part(self.job.key, block, "meet"):
            return self.replicas.agree(yes)

    @contextmanager
    def timed(self, report: BlockReport, part: str) -> Iterator[None]:
        with report.timed(part), self.timeline.part(self.job.key, report.block, part):
            yield
            return_freed_memory()

    @contextmanager
    def exchanged(self, report: BlockReport, part: str) -> Iterator[None]:
        """Timed only where there is somebody to exchange with."""
        with nullcontext() if self.replicas.size == 1 else self.timed(report, part):
            yield
