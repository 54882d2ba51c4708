"""A driver whose sweep another command has taken over lets nothing follow from what its stages did."""

import io
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from rich.console import Console

from mbs_ray.cluster.job import Job, Score
from mbs_ray.cluster.layout import Layout
from mbs_ray.cluster.offload import AUTO
from mbs_ray.cluster.pipeline import Outcome
from mbs_ray.cluster.resources import Resources
from mbs_ray.driver.progress import Progress
from mbs_ray.driver.stage_driver import StageDriver
from mbs_ray.errors import LeaseLostError
from mbs_ray.run.lease import leased
from mbs_ray.run.numerics import Numerics

BEAT = 0.05


class StagesHere:
    """Stages that are busy, and their pool; ``ends``: a job ends at each look."""

    busy = True

    def __init__(self, lease: Path, ends: bool) -> None:
        self.lease, self.ends = lease, ends

    @contextmanager
    def lent(self, *_: object) -> Iterator["StagesHere"]:
        yield self

    def submit(self, job: Job) -> None:
        self.job = job

    def outcomes(self, seconds: float) -> list[Outcome]:
        self.lease.unlink(missing_ok=True)
        time.sleep(10 * BEAT)
        return [Outcome(self.job.key, None)] if self.ends else []

    def statuses(self) -> list[object]:
        return []

    def spans(self) -> list[object]:
        return []


@pytest.mark.parametrize("ends", [False, True])
def test_a_driver_that_lost_its_lease_stops_before_a_run_is_finished_or_told(
    bloom: Path, tmp_path: Path, ends: bool
) -> None:
    followed: list[str] = []
    job = Job("run", bloom, "float32", 1, tmp_path, (range(4),), Score())
    with leased(tmp_path, beat=BEAT) as lease:
        stages = StagesHere(lease.path, ends)
        progress = Progress(Console(file=io.StringIO()))
        driver = StageDriver(Resources(Layout(1), Numerics("cpu", 1)), stages, AUTO, progress, lease.check)
        with pytest.raises(LeaseLostError, match="is gone"):
            driver.work([job], lambda *_: followed.append("ended") or (), lambda: followed.append("tick"))
    assert followed == []
