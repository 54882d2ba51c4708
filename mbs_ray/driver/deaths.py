"""When a run whose stages keep dying is given up."""

from mbs_ray.cluster.job import Job
from mbs_ray.run.directory import finished_files

#: StageDeaths of a stage in one run, without anything finished in between, after which the run is given up.
DEATHS_ALLOWED = 3


class StageDeaths:
    """A counter of stage deaths by run, which starts again once the run has finished a file since the last death."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[int, int]] = {}

    def give_up(self, run: str, job: Job | None) -> bool:
        """Count a death during a run (``job`` None: while stages were started); return whether it was one too many."""
        finished = 0 if job is None else finished_files(job.directory)
        point, count = self._last.get(run, (finished, 0))
        count = count + 1 if point == finished else 1
        self._last[run] = finished, count
        return count >= DEATHS_ALLOWED
