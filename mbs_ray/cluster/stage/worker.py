"""The work of a stage on a run: plain computing, no actor; the stage says where microbatches go."""

import torch

from mbs_ray.cluster.activations.host_memory import return_large_tensors
from mbs_ray.cluster.activations.store import ActivationStore
from mbs_ray.cluster.job import Job
from mbs_ray.cluster.layout import StagePlace
from mbs_ray.cluster.stage.block_loop import take_through
from mbs_ray.cluster.stage.replicas import SingleReplica, StageReplicas
from mbs_ray.cluster.stage.stage_run import Send, StageProcess, StageRun, StageStatus
from mbs_ray.compression.device import exact_forward
from mbs_ray.model.checkpoint import Checkpoint
from mbs_ray.model.decoder import Decoder
from mbs_ray.run.numerics import Numerics


class Worker:
    """The worker of one stage: takes runs through its blocks on the device and with the threads of ``numerics``.

    ``replicas`` are the others that hold the same blocks: each takes its microbatches through them, their moments
    are summed, and each solves linears for all. The first one writes.
    """

    def __init__(self, place: StagePlace, numerics: Numerics, replicas: StageReplicas | None = None) -> None:
        self.process = StageProcess(place, replicas or SingleReplica())
        self._numerics = numerics
        self._decoder: tuple[tuple, Decoder] | None = None
        return_large_tensors()

    def take(self, job: Job, store: ActivationStore, send: Send | None) -> None:
        """Take a run through this stage's blocks; ``send`` is given what the next stage receives."""
        try:
            # For every run, not once: the concurrency groups of an actor have threads of their own.
            with torch.inference_mode(), exact_forward(self._numerics.threads):
                take_through(self.stage_run(job, store, send))
        finally:
            self.process.status = StageStatus()

    def stage_run(self, job: Job, store: ActivationStore, send: Send | None) -> StageRun:
        """Prepare a run for this worker: with its process, and the decoder of the model."""
        return StageRun(job, self.process, self._load_decoder(job), store, send)

    def _load_decoder(self, job: Job) -> Decoder:
        key = (job.model, job.compute_dtype)
        if self._decoder is None or self._decoder[0] != key:
            dtype = getattr(torch, job.compute_dtype)
            self._decoder = (key, Decoder(Checkpoint(job.model), dtype, self._numerics.device))
        return self._decoder[1]
