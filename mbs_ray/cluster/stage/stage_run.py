"""One run in one stage: how its microbatches come and go, and where its progress is recorded."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch

from mbs_ray.cluster.activations.host_memory import return_freed_memory
from mbs_ray.cluster.activations.store import ActivationStore
from mbs_ray.cluster.job import Job, JobText, Microbatch
from mbs_ray.cluster.layout import StagePlace
from mbs_ray.cluster.stage.replicas import StageReplicas
from mbs_ray.cluster.stage.timeline import Timeline
from mbs_ray.compression.block_report import BlockReport
from mbs_ray.compression.device import compute_alone
from mbs_ray.model.decoder import Decoder
from mbs_ray.text.segment_file import SegmentSet

#: Takes the input of a block: (microbatch index, block, hidden states).
Send = Callable[[int, int, torch.Tensor], None]


@dataclass(frozen=True)
class StageStatus:
    """The progress of a stage: ``done`` of ``total`` microbatches in ``part`` of a block of a run."""

    run: str = ""
    block: int = -1
    part: str = "idle"
    done: int = 0
    total: int = 0
    language: str = ""


@dataclass(eq=False)
class StageProcess:
    """The state of a stage's process, common to all runs it works on.

    ``ahead`` is the thread that reads blocks ahead, ``hashing`` the one that hashes written blocks; ``blocks_done``
    counts the blocks that were written, and ``tokens_done`` the tokens that were taken through a block, since the
    start. ``sharing`` stages use the host memory of the node.
    """

    place: StagePlace
    replicas: StageReplicas
    timeline: Timeline = field(default_factory=Timeline)
    ahead: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, initializer=compute_alone))
    hashing: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))
    status: StageStatus = StageStatus()
    blocks_done: int = 0
    tokens_done: int = 0
    sharing: int = 1


@dataclass(eq=False)
class StageRun:
    """A job on its way through the blocks of one stage, on one replica of it.

    ``send`` takes what the next stage receives; None in the last one.
    """

    job: Job
    process: StageProcess
    decoder: Decoder
    store: ActivationStore
    send: Send | None

    @property
    def place(self) -> StagePlace:
        return self.process.place

    @property
    def replicas(self) -> StageReplicas:
        return self.process.replicas

    @property
    def timeline(self) -> Timeline:
        return self.process.timeline

    @property
    def blocks(self) -> range:
        """Shard of this stage."""
        return self.job.blocks[self.place.stage]

    @property
    def writes(self) -> bool:
        """Whether this replica is the one that writes for its stage."""
        return self.place.replica == 0

    @property
    def microbatches(self) -> list[Microbatch]:
        """Microbatches of this replica, in order."""
        return self.job.microbatches(self.place.replica)

    def microbatches_of(self, file: JobText) -> list[Microbatch]:
        """List the microbatches of one file in this replica."""
        return [one for one in self.microbatches if one.file is file]

    def tell(self, block: int, part: str, done: int, total: int, language: str = "") -> None:
        """Record where the run is, for whoever looks at the stage."""
        self.process.status = StageStatus(self.job.key, block, part, done, total, language)

    def follow(self, block: int, part: str, microbatches: list[Microbatch]) -> Iterator[Microbatch]:
        """Yield the microbatches one by one, recording before each where this stage is."""
        for done, microbatch in enumerate(microbatches):
            self.tell(block, part, done, len(microbatches), microbatch.language)
            yield microbatch

    def get(self, microbatch: Microbatch, block: int) -> torch.Tensor:
        """Return the input of a block; raises :class:`RunAbandonedError` where the run was given up."""
        if not self.store.holds(microbatch.index):
            with self.timeline.part(self.job.key, block, "receive"):
                self.store.wait(microbatch.index)
        hidden = self.store.get(microbatch.index, block, self.decoder.device)
        self.process.tokens_done += hidden.shape[0] * hidden.shape[1]
        return hidden

    def pass_on(self, microbatch: Microbatch, block: int, hidden: torch.Tensor) -> None:
        """Keep the output of a block for the next block, or hand it to the next stage."""
        if self.send is None or block != self.blocks[-1]:
            self.store.put(microbatch.index, block + 1, hidden)
            return
        with self.timeline.part(self.job.key, block, "send"):
            self.send(microbatch.index, block + 1, hidden)
        self.store.pop(microbatch.index)

    def wait_for_digests(self) -> None:
        """Return when the blocks written so far are hashed: their thread takes one after the other."""
        self.process.hashing.submit(lambda: None).result()

    def agree(self, block: int, yes: bool = True) -> bool:
        """Wait for the other replicas, and return whether all say yes."""
        if self.replicas.size == 1:
            return yes
        with self.timeline.part(self.job.key, block, "meet"):
            return self.replicas.agree(yes)

    @contextmanager
    def timed(self, report: BlockReport, part: str) -> Iterator[None]:
        """Time a part of a block for its report and for the timeline."""
        with report.timed(part), self.timeline.part(self.job.key, report.block, part):
            yield
            return_freed_memory()

    @contextmanager
    def exchanged(self, report: BlockReport, part: str) -> Iterator[None]:
        """Time a part only where there are other replicas to exchange with."""
        with nullcontext() if self.replicas.size == 1 else self.timed(report, part):
            yield


def token_ids_of(microbatch: Microbatch) -> torch.Tensor:
    """Read the token ids of a microbatch: int64 [segments, length]."""
    token_ids = SegmentSet.open(microbatch.file.path).token_ids(microbatch.start, microbatch.stop)
    return torch.from_numpy(token_ids.astype(np.int64))


def read_tokens(microbatch: Microbatch) -> torch.Tensor:
    """Read those token ids of a microbatch that go through the blocks."""
    token_ids = token_ids_of(microbatch)
    return token_ids[:, :-1] if microbatch.file.requests else token_ids
