"""What of Ray's errors is a death, what it died of, and that nothing waits for an answer without an end."""

import ast
from pathlib import Path

import pytest
from ray import exceptions
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    GetTimeoutError,
    LocalRayletDiedError,
    NodeDiedError,
    ObjectLostError,
    ObjectStoreFullError,
    OutOfMemoryError,
    OwnerDiedError,
    RayTaskError,
    TaskCancelledError,
    WorkerCrashedError,
)

from mbs_ray.text.ray_deaths import DEATHS, shortage, why

PACKAGE = Path(__file__).parents[2] / "mbs_ray"
#: As Ray 2.60 says it.
MONITOR = "1 worker(s) were killed due to the node running low on memory. Memory on the node\n(IP: 10.0.0.1) was 30 GB"
DEAD = [
    ActorDiedError(),
    ActorUnavailableError("no heartbeat", None),
    OutOfMemoryError(MONITOR),
    WorkerCrashedError(),
    NodeDiedError("node 7 is gone"),
    LocalRayletDiedError(),
    ObjectLostError("00ff", None, ""),
    OwnerDiedError("00ff", None, ""),
    exceptions.RaySystemError("worker start-up failed"),
    exceptions.ActorPlacementGroupRemoved(),
    exceptions.TaskUnschedulableError("its node is gone"),
]
ALIVE = [ValueError("bad"), GetTimeoutError("late"), ObjectStoreFullError("full"), TaskCancelledError(), MemoryError()]


def of_task(cause: Exception) -> Exception:
    """As ray.get raises what a task raised."""
    error: Exception = RayTaskError("process", "traceback", cause, "ray::Stage", 1, "10.0.0.1").as_instanceof_cause()
    return error


@pytest.mark.parametrize("error", DEAD, ids=lambda one: type(one).__name__)
def test_a_death_is_one_also_where_another_process_met_it(error: Exception) -> None:
    assert isinstance(error, DEATHS) and isinstance(of_task(error), DEATHS)
    assert "\n" not in why(error)


@pytest.mark.parametrize("error", ALIVE, ids=lambda one: type(one).__name__)
def test_what_a_task_raises_of_itself_is_no_death(error: Exception) -> None:
    assert not isinstance(error, DEATHS) and not isinstance(of_task(error), DEATHS)


def test_memory_is_the_reason_where_ray_says_so() -> None:
    before_it_began = exceptions.RayActorError(error_msg=f"The actor died.\n{MONITOR}")
    for error in (OutOfMemoryError(MONITOR), of_task(OutOfMemoryError(MONITOR)), before_it_began):
        assert shortage(error) == "host memory"
        assert why(error) == "Ray's memory monitor killed it, its node was short of memory"
    assert [shortage(one) for one in (ActorDiedError(), NodeDiedError("gone"), of_task(MemoryError()))] == ["", "", ""]


def test_nothing_waits_for_ray_without_an_end() -> None:
    waits = 0
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("ray.get", "ray.wait"):
                waits += 1
                assert "timeout" in {keyword.arg for keyword in node.keywords}, f"{path}:{node.lineno}"
    assert waits >= 12
