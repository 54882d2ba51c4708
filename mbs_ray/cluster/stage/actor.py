"""A stage: the Ray actor that owns a contiguous shard of the blocks on one device."""

import os
import threading
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from ray.exceptions import GetTimeoutError, RayTaskError

from mbs_ray.cluster.activations.store import ActivationStore, RunAbandonedError
from mbs_ray.cluster.bounds import CREDITS, HANDOVER_SECONDS, RUNS_HELD, TierName
from mbs_ray.cluster.job import Job
from mbs_ray.cluster.layout import StagePlace
from mbs_ray.cluster.offload import AUTO, FreeMemory, Offload, StoreMaker, free_memory
from mbs_ray.cluster.stage.ray_metrics import StageMetrics
from mbs_ray.cluster.stage.replica_store import StoreAddress, hosted_store, joined_store
from mbs_ray.cluster.stage.replicas import (
    ReplicaGaveUpError,
    ReplicaGroup,
    ReplicaLostError,
)
from mbs_ray.cluster.stage.stage_run import StageStatus
from mbs_ray.cluster.stage.timeline import Span
from mbs_ray.cluster.stage.worker import Worker
from mbs_ray.compression.device import compute_alone, forward_device
from mbs_ray.run.numerics import Numerics

# numpy knows no bfloat16: 16-bit types travel as int16 of the same bits.
_CARRIER = {torch.float32: torch.float32, torch.bfloat16: torch.int16, torch.float16: torch.int16}


class Stage:
    """What a :data:`StageActor` does: run jobs one after the other, per block collect, solve, write, propagate.

    ``process`` computes; meanwhile ``receive`` takes microbatches from the stage before and ``control`` methods
    answer. Nothing here is retried: a finished block is in the run directory.
    Every replica of a stage is such an actor, and hands over to the one of its number in the next stage.
    An actor has no place among the stages until :meth:`connect`: its process imports what it needs before that.
    """

    _place: StagePlace
    _device: str
    _worker: Worker
    _metrics: StageMetrics
    _new_store: StoreMaker

    def __init__(self) -> None:
        self._store: Any = None
        self._next: Any = None
        self._stores: dict[int, ActivationStore] = {}
        #: Submissions that ended here or were given up: microbatches of them that still arrive are dropped.
        self._over: set[int] = set()
        self._changed = threading.Condition()

    @ray.method(concurrency_group="control")
    def connect(self, place: StagePlace, numerics: Numerics, following: Any) -> int:
        """Take a place, before the stage that is ``following``, and return the id of this process.

        Raises :class:`InputError` where this process has not the device that the stages were given.
        """
        forward_device(numerics.device)
        self._place, self._device, self._next = place, numerics.device, following
        self._worker = Worker(place, numerics)
        self._metrics = StageMetrics(place)
        self._new_store = StoreMaker(AUTO, "host", self._device)
        return os.getpid()

    @ray.method(concurrency_group="control")
    def host(self) -> StoreAddress:
        """Serve the store through which the replicas of this stage find each other; return its address."""
        address, self._store = hosted_store(ray.util.get_node_ip_address())
        return address

    @ray.method(concurrency_group="control")
    def join(self, address: StoreAddress) -> None:
        """Join the group of this stage's replicas; returns when all have joined."""
        store = self._store or joined_store(address)
        rank, size = self._place.replica, self._place.layout.replicas
        self._worker.process.replicas = ReplicaGroup(
            rank, size, store, address.secret, ray.util.get_node_ip_address(), self._device
        )

    @ray.method(concurrency_group="control")
    def room(self, nvme_path: Path | None) -> FreeMemory:
        """Measure the free memory of this stage's node."""
        return free_memory(nvme_path, self._device)

    @ray.method(concurrency_group="control")
    def offload(self, offload: Offload, tier: TierName, sharing: int) -> None:
        """Keep activations in this tier from now on; ``sharing`` stages use the host memory of this node."""
        self._new_store = StoreMaker(offload, tier, self._device)
        self._worker.process.sharing = sharing

    @ray.method(concurrency_group="control")
    def look(self) -> tuple[StageStatus, list[Span]]:
        """Return where this stage is, and the spans that ended since the last call."""
        with self._changed:
            held = sum(store.held() for store in self._stores.values())
        process = self._worker.process
        self._metrics.tell(process.blocks_done, process.tokens_done, self._new_store.tier, held)
        return process.status, process.timeline.take()

    @ray.method(concurrency_group="control")
    def abandon(self, submission: int) -> None:
        """Give a run up: waiting for its microbatches ends, and later ones are dropped."""
        with self._changed:
            self._over.add(submission)
            if submission in self._stores:
                self._stores[submission].abandon()
            self._changed.notify_all()

    @ray.method(concurrency_group="receive")
    def receive(self, submission: int, microbatch: int, block: int, carried: np.ndarray, dtype: torch.dtype) -> None:
        """Store a microbatch of a run; waits while this stage already holds :data:`RUNS_HELD` other runs."""
        with self._changed:
            self._changed.wait_for(
                lambda: submission in self._over or submission in self._stores or len(self._stores) < RUNS_HELD
            )
            if submission in self._over:
                return
            if submission not in self._stores:
                self._stores[submission] = self._new_store()
            store = self._stores[submission]
            self._changed.notify_all()
        compute_alone()
        # The array is the object store's and read-only: the store below makes the one copy.
        with torch.no_grad():
            store.put(microbatch, block, _unpack(carried, dtype))

    def process(self, submission: int, job: Job) -> None:
        """Take a run through this stage's blocks; ends when all replicas are through.

        ``submission`` numbers the runs of this actor: the same job may come twice, and late microbatches of the first
        are not the second's.
        """
        replicas = self._worker.process.replicas
        try:
            self._process(submission, job)
            replicas.agree()
        except (ReplicaGaveUpError, ReplicaLostError):
            raise
        except Exception:
            replicas.give_up()
            raise

    def _process(self, submission: int, job: Job) -> None:
        with self._changed:
            # A replica that nothing is sent to, because there are so few microbatches, waits for nothing; nor does
            # one that can solve its blocks before anything arrives.
            alone = self._place.first or not job.waits_for_text or not job.microbatches(self._place.replica)
            if alone and submission not in self._stores:
                self._stores[submission] = self._new_store()
            self._changed.wait_for(lambda: submission in self._stores or submission in self._over)
            if submission in self._over:
                if submission in self._stores:
                    self._stores.pop(submission).close()
                raise RunAbandonedError
            store = self._stores[submission]
        try:
            sender = None if self._next is None else _Sender(self._next, submission)
            self._worker.take(job, store, None if sender is None else sender.send)
            if sender is not None:
                sender.drain()
        finally:
            with self._changed:
                # The last stage may end before the last calibration microbatches, which it does not need, arrive.
                self._over.add(submission)
                del self._stores[submission]
                self._changed.notify_all()
            store.close()


StageActor = ray.remote(concurrency_groups={"receive": CREDITS, "control": 1}, max_restarts=0, max_task_retries=0)(
    Stage
)


class _Sender:
    """The way to the next stage: hands microbatches over, never more than :data:`CREDITS` unacknowledged.

    A call of ``receive`` that returns is a credit: the microbatch is stored. While the next stage holds
    :data:`RUNS_HELD` other runs its ``receive`` does not return, so credits run out and ``send`` waits, as then do the
    stages before it. The actor runs :data:`CREDITS` calls of ``receive`` at a time: none is queued in the object store.
    """

    def __init__(self, following: Any, submission: int) -> None:
        self._following, self._submission = following, submission
        self._unacknowledged: deque[ray.ObjectRef] = deque()

    def send(self, microbatch: int, block: int, hidden: torch.Tensor) -> None:
        while len(self._unacknowledged) >= CREDITS:
            self._acknowledged()
        receive = self._following.receive.remote
        self._unacknowledged.append(receive(self._submission, microbatch, block, _pack(hidden), hidden.dtype))

    def drain(self) -> None:
        while self._unacknowledged:
            self._acknowledged()

    def _acknowledged(self) -> None:
        """Wait until the oldest microbatch is stored; an error of the receiver is raised here as it was there."""
        try:
            ray.get(self._unacknowledged.popleft(), timeout=HANDOVER_SECONDS)
        except RayTaskError as error:
            raise error.cause if isinstance(error.cause, Exception) else error from None
        except GetTimeoutError:
            raise RuntimeError(f"the next stage took no microbatch for {HANDOVER_SECONDS:.0f} s") from None


def _pack(hidden: torch.Tensor) -> np.ndarray:
    return hidden.cpu().contiguous().view(_CARRIER[hidden.dtype]).numpy()


def _unpack(carried: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    return torch.from_numpy(carried).view(dtype)
