"""The errors of Ray that mean a death, and the one way to wait for an answer that may never come."""

from typing import Any

import ray
from ray.exceptions import (
    ActorPlacementGroupRemoved,
    ActorUnschedulableError,
    LocalRayletDiedError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RaySystemError,
    RayTaskError,
    TaskPlacementGroupRemoved,
    TaskUnschedulableError,
    WorkerCrashedError,
)

from mbs_ray.errors import Shortage, StageDiedError, one_line

#: A process, its node, its place there, or whoever held what it was asked for is gone. Nothing that it was given is at
#: fault: the same work may succeed elsewhere. A task that fails by one of them raises it too, as its own class.
DEATHS = (
    RayActorError,
    OutOfMemoryError,  # Ray's memory monitor killed it; no subclass of the one above
    WorkerCrashedError,
    NodeDiedError,
    LocalRayletDiedError,
    ObjectLostError,
    RaySystemError,
    ActorPlacementGroupRemoved,
    TaskPlacementGroupRemoved,
    ActorUnschedulableError,
    TaskUnschedulableError,
)
#: In what Ray says of an actor that the monitor killed before it had begun.
_MONITOR_SAID = "node running low on memory"
#: An answer that is there already is fetched within this time.
FETCH_SECONDS = 60.0


def fetched(reference: Any) -> Any:
    """Return an answer that is ready. Raises GetTimeoutError where its node does not hand it out in time."""
    return ray.get(reference, timeout=FETCH_SECONDS)


def shortage(error: BaseException) -> Shortage:
    """Return ``host memory`` where Ray's memory monitor killed what died, as far as the error tells."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    killed = isinstance(cause, OutOfMemoryError) or (isinstance(cause, RayActorError) and _MONITOR_SAID in str(cause))
    return "host memory" if killed else ""


def why(error: BaseException) -> str:
    """Say on one line what became of what died."""
    if shortage(error):
        return "Ray's memory monitor killed it, its node was short of memory"
    return one_line(error)


def stage_died(said: str, error: BaseException, cure: str = "") -> StageDiedError:
    """Return the error that says what died, of what, and what to do."""
    return StageDiedError(f"{said} ({why(error)}){cure}", shortage=shortage(error))
