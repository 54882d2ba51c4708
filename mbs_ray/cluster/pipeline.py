"""The driver's side of the stages: start them, feed them runs, learn how the runs ended."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from mbs_ray.cluster.activations.store import RunAbandonedError
from mbs_ray.cluster.job import Job
from mbs_ray.cluster.layout import Layout, StagePlace
from mbs_ray.cluster.offload import AUTO, Offload, choose_tiers
from mbs_ray.cluster.stage.actor import StageActor
from mbs_ray.cluster.stage.replica_store import START_SECONDS as GROUP_SECONDS
from mbs_ray.cluster.stage.replicas import ReplicaLostError, ReplicaMemoryError
from mbs_ray.cluster.stage.stage_run import StageStatus
from mbs_ray.cluster.stage.timeline import Span
from mbs_ray.errors import InputError, Shortage, StageDiedError, one_line
from mbs_ray.run.numerics import Numerics
from mbs_ray.text.ray_deaths import DEATHS, fetched, shortage, stage_died

PLACE_SECONDS = 30.0
#: For processes that import torch from a cold disk, on cores that others use.
START_SECONDS = 300.0
#: A stage that does not answer for this long counts as dead: it is stopped, or its node is cut off.
ANSWER_SECONDS = 60.0
_LOOK_SECONDS = 2.0
_ENDED: dict[Shortage, str] = {
    "": "died",
    "host memory": "was killed by Ray's memory monitor",
    "device memory": "ran out of device memory",
}


@dataclass(frozen=True)
class Outcome:
    """How a run ended: ``error`` is None when all stages took it through."""

    key: str
    error: Exception | None


class Pipeline:
    """The stages of a layout, also as a context manager; runs are submitted in order and end in about that order.

    All runs may be submitted at once: a stage takes them one after the other, and a sender waits while the next stage
    holds two runs already, so that memory is bounded whatever the number of runs. ``say`` is called before long
    preparations; ``ahead`` are actors that were started, on the only node, before it was known how many are needed.
    Entering raises :class:`InputError` where the stages, or activations as ``offload`` describes them, do not fit.
    """

    def __init__(
        self,
        layout: Layout,
        numerics: Numerics,
        offload: Offload = AUTO,
        say: Callable[[str], None] = print,
        ahead: Sequence[Any] = (),
    ) -> None:
        self.layout, self.numerics = layout, numerics
        self._ahead = list(ahead)
        self._places, self._offload, self._say = layout.places(), offload, say
        self._stages: list[Any] = []
        self._placement: PlacementGroup | None = None
        #: Submissions are numbered, so that a late message of one is not taken for a later one with the same key.
        self._submitted = 0
        self._pending: dict[ray.ObjectRef, tuple[int, str, int]] = {}
        self._open: dict[int, int] = {}
        self._looking: dict[ray.ObjectRef, int] = {}
        self._answered = [0.0] * len(self._places)
        self._looked = 0.0
        self._seen = [StageStatus() for _ in self._places]
        self._spans: list[tuple[StagePlace, Span]] = []
        self._errors: dict[int, Exception] = {}
        self.process_ids: list[int] = []

    def __enter__(self) -> "Pipeline":
        self.start()
        try:
            self.make_ready(self._offload, self._say)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start the actors of all stages. Raises :class:`InputError` where they do not fit."""
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def make_ready(self, offload: Offload, say: Callable[[str], None]) -> None:
        """Have idle stages keep activations as ``offload`` says, from the next run on."""
        choose_tiers(offload, self._stages, say)
        self._looking, self._spans = {}, []
        self._seen = [StageStatus() for _ in self._places]
        self._answered = [time.monotonic()] * len(self._places)

    def answers(self) -> bool:
        """Return whether every actor is alive and answers at once."""
        try:
            ray.get([stage.look.remote() for stage in self._stages], timeout=_LOOK_SECONDS)
        except (*DEATHS, GetTimeoutError):
            return False
        return True

    def stop(self) -> None:
        """Stop all actors and release their resources."""
        for stage in self._stages:
            ray.kill(stage)
        self._stages = []
        if self._placement is not None:
            remove_placement_group(self._placement)
            self._placement = None

    def _start(self) -> None:
        count = len(self._places)
        gpus = 1 if self.numerics.device == "cuda" else 0
        self._check_resources(gpus)
        actor: Any = StageActor
        placed = actor.options(num_cpus=self.numerics.threads, num_gpus=gpus, scheduling_strategy=self._reserve(gpus))
        # Those that were started ahead compute on what is reserved here, though Ray has them elsewhere in its books. A
        # node that has come meanwhile may be what is reserved.
        if gpus or sum(node["Alive"] for node in ray.nodes()) != 1:
            self._ahead = []
        self._stages = [self._ahead.pop() if self._ahead else placed.remote() for _ in self._places]
        self._ahead = []  # actors that nothing refers to end
        replicas = self.layout.replicas
        # Replica r of a stage hands over to replica r of the next one, which is `replicas` actors further on.
        following = [*self._stages[replicas:], *[None] * replicas]
        ready = [
            stage.connect.remote(place, self.numerics, after)
            for stage, place, after in zip(self._stages, self._places, following, strict=True)
        ]
        try:
            self.process_ids = ray.get(ready, timeout=START_SECONDS)
            self._form_groups()
        except GetTimeoutError as error:
            raise InputError(
                f"layout: {count} actors of {self.numerics.threads} CPUs did not start within "
                f"{START_SECONDS:.0f} s; see the logs of Ray"
            ) from error
        except DEATHS as error:
            raise stage_died("a stage did not start", error) from error
        except RayTaskError as error:
            raise error.cause if isinstance(error.cause, InputError) else error from None

    def _check_resources(self, gpus: int) -> None:
        count, resources = len(self._places), ray.cluster_resources()
        wanted = count * self.numerics.threads
        if gpus and resources["GPU"] < count:
            raise InputError(
                f"layout: {count} actors want a GPU each, the cluster has {resources['GPU']:.0f}; "
                "ask for fewer stages or replicas"
            )
        if resources.get("CPU", 0) < wanted:
            raise InputError(
                f"layout: {count} actors of {self.numerics.threads} threads want {wanted} CPUs, "
                f"the cluster has {resources.get('CPU', 0):.0f}; ask for fewer stages, replicas or threads"
            )

    def _reserve(self, gpus: int) -> PlacementGroupSchedulingStrategy:
        """Reserve a place for every actor, all or none.

        On GPUs neighbours share a node if they can, on CPUs they spread.
        """
        count = len(self._places)
        bundle = {"CPU": float(self.numerics.threads)} | ({"GPU": 1.0} if gpus else {})
        self._placement = placement_group([bundle] * count, strategy="PACK" if gpus else "SPREAD")
        if not self._placement.wait(PLACE_SECONDS):
            nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            there = ", ".join(f"{node.get('CPU', 0):.0f} CPUs and {node.get('GPU', 0):.0f} GPUs" for node in nodes)
            each = f"{self.numerics.threads} CPUs{' and a GPU' if gpus else ''} each"
            raise InputError(
                f"layout: {count} actors of {each} could not be placed within {PLACE_SECONDS:.0f} s "
                f"on nodes of {there}; free the cluster, or ask for fewer stages, replicas or threads"
            )
        return PlacementGroupSchedulingStrategy(self._placement)

    def _form_groups(self) -> None:
        """Connect the replicas of every stage to each other."""
        if self.layout.replicas == 1:
            return
        try:
            addresses = ray.get(
                [stage.host.remote() for stage in self._stages[:: self.layout.replicas]], timeout=GROUP_SECONDS
            )
            joined = [
                stage.join.remote(addresses[place.stage])
                for stage, place in zip(self._stages, self._places, strict=True)
            ]
            ray.get(joined, timeout=GROUP_SECONDS)
        except (RayTaskError, GetTimeoutError) as error:
            if isinstance(error, DEATHS):
                raise
            reason = str(error).strip().splitlines()[-1] if str(error).strip() else "no answer"
            raise StageDiedError(
                f"the replicas of a stage did not find each other within {GROUP_SECONDS} s ({reason}); "
                "nodes must reach each other on all ports"
            ) from error

    def submit(self, job: Job) -> None:
        """Queue a run at all stages."""
        self._submitted += 1
        self._open[self._submitted] = len(self._stages)
        for index, stage in enumerate(self._stages):
            self._pending[stage.process.remote(self._submitted, job)] = self._submitted, job.key, index

    def outcomes(self, wait_seconds: float) -> Iterator[Outcome]:
        """Yield the runs that ended within the next ``wait_seconds``. Raises :class:`StageDiedError`."""
        ready, _ = ray.wait(list(self._pending), num_returns=len(self._pending), timeout=wait_seconds)
        for reference in ready:
            number, key, stage = self._pending.pop(reference)
            try:
                fetched(reference)
            except (*DEATHS, GetTimeoutError) as error:
                # Also raised by a stage that could not hand over to one that died.
                raise self._death(stage, key, error) from error
            except RayTaskError as error:
                if isinstance(error.cause, ReplicaLostError):
                    raise self._death(stage, key, error) from error
                self._fail(number, key, stage, error)
            self._open[number] -= 1
            if self._open[number] == 0:
                del self._open[number]
                yield Outcome(key, self._errors.pop(number, None))

    @property
    def busy(self) -> bool:
        """Whether a stage still works on a submitted run."""
        return bool(self._pending)

    def statuses(self) -> list[StageStatus]:
        """Return where every stage (its first replica) is, or last answered to be. Raises :class:`StageDiedError`.

        Silence counts while this is called again and again: after a pause of the caller's own, clocks begin anew.
        """
        if time.monotonic() - self._looked > ANSWER_SECONDS / 2:
            self._answered = [time.monotonic()] * len(self._places)
        idle = set(range(len(self._stages))) - set(self._looking.values())
        self._looking |= {self._stages[index].look.remote(): index for index in sorted(idle)}
        ready, _ = ray.wait(list(self._looking), num_returns=len(self._looking), timeout=_LOOK_SECONDS)
        for reference in ready:
            index = self._looking.pop(reference)
            try:
                self._seen[index], spans = fetched(reference)
            except (*DEATHS, GetTimeoutError):
                continue  # its run ends with the same error, or it does not answer in time
            self._answered[index] = time.monotonic()
            self._spans += [(self._places[index], span) for span in spans]
        self._looked = time.monotonic()
        for place, answered, seen in zip(self._places, self._answered, self._seen, strict=True):
            if time.monotonic() - answered > ANSWER_SECONDS:
                raise StageDiedError(f"{place} has not answered for {ANSWER_SECONDS:.0f} s", seen.run)
        return self._seen[:: self.layout.replicas]

    def spans(self) -> list[tuple[StagePlace, Span]]:
        """Take the spans that the stages reported to :meth:`statuses` since the last call."""
        taken, self._spans = self._spans, []
        return taken

    def _fail(self, number: int, key: str, stage: int, error: RayTaskError) -> None:
        """Keep the first error of a run, and have all stages give the run up."""
        cause = error.cause if isinstance(error.cause, Exception) else error
        if isinstance(cause, RunAbandonedError):
            return
        if number not in self._errors:
            self._errors[number] = cause
            try:
                ray.get([one.abandon.remote(number) for one in self._stages], timeout=ANSWER_SECONDS)
            except DEATHS as death:
                raise self._death(stage, key, death) from death
            except GetTimeoutError as silence:
                raise StageDiedError(
                    f"a stage did not give {key} up within {ANSWER_SECONDS:.0f} s ({one_line(cause)})", key
                ) from silence

    def _death(self, index: int, key: str, error: Exception) -> StageDiedError:
        """Name the actor that died and the run it was last seen in; ``index`` and ``key`` where none is found dead."""
        cause = error.cause if isinstance(error, RayTaskError) else error
        short = cause.shortage if isinstance(cause, ReplicaMemoryError) else shortage(error)
        for other, one in enumerate(self._stages):
            try:
                ray.get(one.look.remote(), timeout=_LOOK_SECONDS)
            except DEATHS as death:
                index, key, short = other, self._seen[other].run or key, short or shortage(death)
                break
            except GetTimeoutError:
                continue
        ended = f"{self._places[index]} {_ENDED[short]} during {key}"
        return StageDiedError(f"{ended}; the same command resumes from here", key, short)
