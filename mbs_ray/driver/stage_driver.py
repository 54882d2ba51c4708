"""Takes jobs through the stages, with new stages as often as one dies."""

from collections.abc import Callable, Iterable

from mbs_ray.cluster.job import Job
from mbs_ray.cluster.offload import Offload
from mbs_ray.cluster.pipeline import Pipeline
from mbs_ray.driver.deaths import DEATHS_ALLOWED, StageDeaths
from mbs_ray.driver.progress import Progress
from mbs_ray.driver.stage_spans import StageSpans
from mbs_ray.driver.sweep_jobs import SweepJobs
from mbs_ray.errors import StageDiedError

POLL_SECONDS = 0.5
_LIKELY = "out of memory is the likely cause: take fewer segments, another offload, or see the logs of Ray"
#: Told how a job ended; gives the jobs that are to follow.
Ended = Callable[[str, Exception | None], Iterable[Job]]


class Driver:
    """``jobs`` has the layout that is left when the cluster has lost nodes; ``spans`` what the stages did."""

    def __init__(self, jobs: SweepJobs, offload: Offload, progress: Progress) -> None:
        self.jobs = jobs
        self.spans = StageSpans()
        self._offload, self._progress = offload, progress

    def work(self, jobs: Iterable[Job], ended: Ended, tick: Callable[[], None] = lambda: None) -> None:
        """All jobs and what follows them; ``tick`` is called now and then.

        Where a stage dies, finished blocks are kept, and the job that was in work replays them.
        """
        todo = {job.key: job for job in jobs}
        deaths = StageDeaths()
        while todo:
            try:
                self._drive(todo, ended, tick)
            except StageDiedError as death:
                if deaths.give_up(death.run, todo.get(death.run)):
                    if death.run not in todo:
                        raise
                    reason = RuntimeError(f"its stage died {DEATHS_ALLOWED} times at one point; {_LIKELY}")
                    del todo[death.run]
                    todo |= {job.key: job for job in ended(death.run, reason)}
                else:
                    self._progress.say(f"{death}: starting the stages anew")
                self.jobs = self.jobs.shrunk_to_cluster(self._progress.say)
                todo = {key: self.jobs.sharded(job) for key, job in todo.items()}

    def _drive(self, todo: dict[str, Job], ended: Ended, tick: Callable[[], None]) -> None:
        """Those that end are taken out of ``todo``, those that follow put in."""
        layout = self.jobs.layout
        offload = self._offload.of(todo.values(), layout.stages)
        with (
            Pipeline(layout, self.jobs.numerics.threads, offload, self._progress.say) as pipeline,
            self._progress.runs(dict(todo)) as show,
        ):
            for job in todo.values():
                pipeline.submit(job)
            while pipeline.busy:
                for outcome in pipeline.outcomes(POLL_SECONDS):
                    show.ended(outcome.key, outcome.error)
                    del todo[outcome.key]
                    for job in ended(outcome.key, outcome.error):
                        todo[job.key] = job
                        show.add(job)
                        pipeline.submit(job)
                show.stages(pipeline.statuses())
                self.spans.add(pipeline.spans())
                tick()
