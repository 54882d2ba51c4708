"""The driver's side of the stages: start them, feed them runs, learn how the runs ended."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from mbs_ray.cluster.activations import RunAbandonedError
from mbs_ray.cluster.job import Job
from mbs_ray.cluster.offload import AUTO, Offload, settle
from mbs_ray.cluster.stage import Stage
from mbs_ray.cluster.timeline import Span
from mbs_ray.cluster.worker import Status
from mbs_ray.errors import InputError, StageDiedError

PLACE_SECONDS = 30.0
START_SECONDS = 180.0


@dataclass(frozen=True)
class Outcome:
    """How a run ended: ``error`` is None when all stages took it through."""

    key: str
    error: Exception | None


class Pipeline:
    """Stages as a context manager; runs are submitted in order and end in about that order.

    All runs may be submitted at once: a stage takes them one after the other, and a sender waits
    while the next stage holds two runs already, so that memory is bounded whatever the number of runs.
    ``say`` is told of long preparations. Entering raises :class:`InputError` where the stages, or the
    activations of the runs as ``offload`` tells of them, find no place.
    """

    def __init__(self, stages: int, threads: int, offload: Offload = AUTO, say: Callable[[str], None] = print) -> None:
        self._count, self._threads = stages, threads
        self._offload, self._say = offload, say
        self._stages: list[Any] = []
        self._placement: PlacementGroup | None = None
        self._pending: dict[ray.ObjectRef, tuple[str, int]] = {}
        self._open: dict[str, int] = {}
        self._seen = [Status()] * stages
        self._errors: dict[str, Exception] = {}
        self.process_ids: list[int] = []

    def __enter__(self) -> "Pipeline":
        resources = ray.cluster_resources()
        gpus = 1 if resources.get("GPU", 0) >= self._count else 0
        wanted = self._count * self._threads
        if resources.get("CPU", 0) < wanted:
            raise InputError(
                f"stages: {self._count} stages of {self._threads} threads want {wanted} CPUs, "
                f"the cluster has {resources.get('CPU', 0):.0f}; ask for fewer stages or threads"
            )
        actor: Any = Stage
        actor = actor.options(num_cpus=self._threads, num_gpus=gpus, scheduling_strategy=self._place(gpus))
        self._stages = [actor.remote(index, self._count, self._threads) for index in range(self._count)]
        following = [*self._stages[1:], None]
        ready = [stage.connect.remote(after) for stage, after in zip(self._stages, following, strict=True)]
        try:
            self.process_ids = ray.get(ready, timeout=START_SECONDS)
        except GetTimeoutError as error:
            self.__exit__()
            raise InputError(
                f"stages: {self._count} actors of {self._threads} CPUs did not start within "
                f"{START_SECONDS:.0f} s; see the logs of Ray"
            ) from error
        except RayActorError as error:
            self.__exit__()
            raise StageDiedError(f"a stage did not start: {error}") from error
        try:
            settle(self._offload, self._stages, self._say)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for stage in self._stages:
            ray.kill(stage)
        self._stages = []
        if self._placement is not None:
            remove_placement_group(self._placement)
            self._placement = None

    def _place(self, gpus: int) -> PlacementGroupSchedulingStrategy:
        """A place for every stage, all or none. On GPUs neighbours share a node if they can, on CPUs they spread."""
        bundle = {"CPU": float(self._threads)} | ({"GPU": 1.0} if gpus else {})
        self._placement = placement_group([bundle] * self._count, strategy="PACK" if gpus else "SPREAD")
        if not self._placement.wait(PLACE_SECONDS):
            self.__exit__()
            nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            there = ", ".join(f"{node.get('CPU', 0):.0f} CPUs and {node.get('GPU', 0):.0f} GPUs" for node in nodes)
            each = f"{self._threads} CPUs{' and a GPU' if gpus else ''} each"
            raise InputError(
                f"stages: {self._count} stages of {each} found no place within {PLACE_SECONDS:.0f} s "
                f"on nodes of {there}; free the cluster, or ask for fewer stages or threads"
            )
        return PlacementGroupSchedulingStrategy(self._placement)

    def submit(self, job: Job) -> None:
        self._open[job.key] = len(self._stages)
        for index, stage in enumerate(self._stages):
            self._pending[stage.process.remote(job)] = job.key, index

    def outcomes(self, wait_seconds: float) -> Iterator[Outcome]:
        """Runs that ended within the next ``wait_seconds``. Raises :class:`StageDiedError`."""
        ready, _ = ray.wait(list(self._pending), num_returns=len(self._pending), timeout=wait_seconds)
        for reference in ready:
            key, stage = self._pending.pop(reference)
            try:
                ray.get(reference)
            except RayActorError as error:
                # Also raised by a stage that could not hand over to one that died.
                raise self._death(stage, key) from error
            except RayTaskError as error:
                self._fail(key, stage, error)
            self._open[key] -= 1
            if self._open[key] == 0:
                del self._open[key]
                yield Outcome(key, self._errors.pop(key, None))

    @property
    def busy(self) -> bool:
        return bool(self._pending)

    def statuses(self) -> list[Status]:
        """Where every stage is; empty where the stages do not answer at once."""
        try:
            self._seen = ray.get([stage.status.remote() for stage in self._stages], timeout=2.0)
        except (GetTimeoutError, RayActorError):
            return []
        return self._seen

    def spans(self) -> list[list[Span]]:
        """What every stage did since the last call; empty where the stages do not answer at once."""
        try:
            return ray.get([stage.spans.remote() for stage in self._stages], timeout=2.0)
        except (GetTimeoutError, RayActorError):
            return []

    def _fail(self, key: str, stage: int, error: RayTaskError) -> None:
        """The first error of a run counts; the other stages are told to give it up."""
        cause = error.cause if isinstance(error.cause, Exception) else error
        if isinstance(cause, RunAbandonedError):
            return
        if key not in self._errors:
            self._errors[key] = cause
            try:
                ray.get([one.abandon.remote(key) for one in self._stages])
            except RayActorError as death:
                raise self._death(stage, key) from death

    def _death(self, stage: int, key: str) -> StageDiedError:
        """Which stage died, and in which run it was last seen; ``stage`` and ``key`` where none is found dead."""
        for index, one in enumerate(self._stages):
            try:
                ray.get(one.status.remote(), timeout=2.0)
            except RayActorError:
                stage, key = index, self._seen[index].run or key
                break
            except GetTimeoutError:
                continue
        return StageDiedError(f"stage {stage + 1} died during {key}; the same command goes on from here", key)
