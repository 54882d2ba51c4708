"""Takes jobs through the stages, with new stages as often as one dies."""

from collections.abc import Callable, Iterable

from mbs_ray.cluster.job import Job
from mbs_ray.cluster.offload import Offload
from mbs_ray.cluster.resources import Resources
from mbs_ray.cluster.stage_pool import StagePool
from mbs_ray.driver.deaths import DEATHS_ALLOWED, StageDeaths
from mbs_ray.driver.progress import Progress
from mbs_ray.driver.stage_spans import StageSpans
from mbs_ray.errors import Shortage, StageDiedError

POLL_SECONDS = 0.5
#: Why a run is given up, by what its stage died of.
GIVEN_UP: dict[Shortage, str] = {
    "": "its stage died {times} times at one point; out of memory is the likely cause: take fewer segments, another "
    "offload, or see the logs of Ray",
    "host memory": "memory: Ray's memory monitor killed its stage {times} times at one point; take a smaller "
    "microbatch, fewer segments or actors on a node, offload: nvme, or nodes with more memory",
    "device memory": "memory: its stage ran out of device memory {times} times at one point; take a smaller "
    "microbatch, or offload: host or nvme",
}
#: Told how a job ended; gives the jobs that are to follow.
Ended = Callable[[Job, Exception | None], Iterable[Job]]


class StageDriver:
    """The driver of a command's stages, which its ``pool`` keeps running from one call of :meth:`work` to the next.

    ``resources`` hold the layout, shrunk when the cluster has lost nodes; ``spans`` record what the stages did.
    ``check`` is called before anything follows from what they did, and raises where the command is to stop.
    """

    def __init__(
        self,
        resources: Resources,
        pool: StagePool,
        offload: Offload,
        progress: Progress,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.resources = resources
        self.spans = StageSpans()
        self._pool, self._offload, self._progress, self._check = pool, offload, progress, check

    def work(self, jobs: Iterable[Job], ended: Ended, tick: Callable[[], None] = lambda: None) -> None:
        """Take all jobs and what follows them through the stages; ``tick`` is called now and then.

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
                    reason = RuntimeError(GIVEN_UP[death.shortage].format(times=DEATHS_ALLOWED))
                    todo |= {job.key: job for job in ended(todo.pop(death.run), reason)}
                else:
                    self._progress.say(f"{death}: starting the stages anew")
                self.resources = self.resources.shrunk_to_cluster(self._progress.say)

    def leave_a_cpu(self) -> None:
        """Stop the stages where they hold every CPU, before text is drawn; the next work starts them again."""
        self._pool.leave_a_cpu()

    def work_alone(self, job: Job) -> None:
        """Take one job through the stages; raise the error that stopped it."""

        def ended(_: Job, error: Exception | None) -> Iterable[Job]:
            if error is not None:
                raise error
            return ()

        self.work([job], ended)

    def _drive(self, todo: dict[str, Job], ended: Ended, tick: Callable[[], None]) -> None:
        """Run the jobs of ``todo``, removing those that end and adding those that follow."""
        layout, numerics = self.resources.layout, self.resources.numerics
        jobs = {key: self.resources.sharded(job) for key, job in todo.items()}
        offload = self._offload.of(jobs.values(), layout.stages)
        with (
            self._pool.lent(layout, numerics, offload, self._progress.say) as pipeline,
            self._progress.runs(jobs) as show,
        ):
            for job in jobs.values():
                pipeline.submit(job)
            while pipeline.busy:
                for outcome in pipeline.outcomes(POLL_SECONDS):
                    self._check()
                    show.ended(outcome.key, outcome.error)
                    for job in ended(todo.pop(outcome.key), outcome.error):
                        todo[job.key] = job
                        show.add(job)
                        pipeline.submit(self.resources.sharded(job))
                show.stages(pipeline.statuses())
                self.spans.add(pipeline.spans())
                self._check()
                tick()
