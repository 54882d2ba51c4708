"""From prepared runs to jobs for the stages: signatures, dense baselines, what is finished already."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch

from mbs_ray.cluster.job import Job, JobText, job_text
from mbs_ray.cluster.layout import Layout
from mbs_ray.cluster.numerics import Numerics, room_for_actors
from mbs_ray.cluster.sharding import block_costs, head_cost, shard_blocks
from mbs_ray.driver.pools import Pool, PoolMoments, refuse_full_disk
from mbs_ray.errors import InputError
from mbs_ray.methods import method_spec
from mbs_ray.model.block_files import block_file
from mbs_ray.run.directory import METRICS, scores_file
from mbs_ray.run.prepare import PreparedRun
from mbs_ray.run.sweep_folders import SweepFolders
from mbs_ray.text.segment_file import SegmentSet
from mbs_ray.text.segment_request import SegmentRequest


@dataclass(frozen=True)
class SweepJobs:
    """Jobs of a sweep on a known cluster; ``segments`` holds what was drawn, by fingerprint."""

    folders: SweepFolders
    numerics: Numerics
    layout: Layout
    segments: Mapping[str, SegmentSet]
    pools: Sequence[Pool] = ()

    def shrunk_to_cluster(self, say: Callable[[str], None]) -> "SweepJobs":
        """The same with as many stages as the cluster, which may have lost a node, has CPUs (or GPUs) for.

        :class:`InputError` where there is no room for the replicas of one stage, on whose number the bits depend.
        """
        room, replicas = room_for_actors(self.numerics.threads), self.layout.replicas
        if room >= self.layout.actors:
            return self
        if room < replicas:
            raise InputError(
                f"layout.replicas: the cluster has room for {room} of the {replicas} replicas with which this was "
                "begun; bring nodes back and give the same command again"
            )
        fit = Layout(room // replicas, replicas)
        say(f"the cluster has room for {fit.stages} of {self.layout.stages} stages: going on with those")
        return replace(self, layout=fit)

    def sharded(self, job: Job) -> Job:
        """A job over as many stages as there are now, blocks counted as equally costly."""
        if len(job.blocks) == self.layout.stages:
            return job
        return replace(job, blocks=tuple(shard_blocks([1.0] * job.blocks[-1].stop, 0.0, self.layout.stages)))

    def signature(self, run: PreparedRun) -> dict[str, Any]:
        """All that can change a bit of the run's weights, and whether its reports hold the error of each language.

        The latter changes no bit, but blocks that were finished without it cannot be measured any more.
        """
        return {
            "model": run.model.fingerprint,
            "calibration": run.calibration.fingerprint,
            "method": method_spec(run.spec.method),
            **_statistics(run),
            "true_sequential": run.spec.true_sequential,
            "per_language": run.spec.per_language,
            "replicas": self.layout.replicas,
            **self.bits(run),
        }

    def bits(self, run: PreparedRun) -> dict[str, Any]:
        """The fields of :data:`~mbs_ray.run.sweep_folders.FORWARD_FIELDS`."""
        return {
            "compute_dtype": self._compute_dtype(run),
            "microbatch": run.microbatch,
            "device": self.numerics.device,
            "threads": self.numerics.threads,
            "torch": torch.__version__,
        }

    def finished_result(self, run: PreparedRun) -> dict[str, Any] | None:
        """What an earlier command left of the run; None where the run, or one of its evaluations, is not done."""
        result = self.folders.run(run.label).result()
        wanted = {name: text.fingerprint for name, text in run.evaluation.items()}
        if result is None or result["evaluation"] != wanted:
            return None
        # Weights that were removed are computed anew where they are wanted after all.
        return None if run.spec.keep == "checkpoint" and result.get("keep") == METRICS else result

    def run_job(self, run: PreparedRun) -> Job:
        evaluation = tuple(self._file(name, text) for name, text in run.evaluation.items())
        directory, method = self.folders.run(run.label).path, method_spec(run.spec.method)
        if run.weights is None:
            calibration = self._file("calibration", run.calibration)
            return self._job(run, run.label, method, calibration, evaluation, directory)
        job = self._job(run, run.label, method, None, evaluation, directory)
        pool = next((one for one in self.pools if run in one.runs), None)
        if pool is None:
            return job
        return self._taking(job, pool, run)

    def trial_job(self, run: PreparedRun, weights: Mapping[str, float], number: int, directory: Path) -> Job:
        """What tells how much each language would lose with these weights; reports of blocks under ``directory``."""
        pool = next(one for one in self.pools if run in one.runs)
        weighed = replace(run, weights={code: Fraction(one) for code, one in weights.items()})
        job = self._job(run, f"{run.label}-trial{number}", method_spec(run.spec.method), None, (), directory)
        return replace(self._taking(job, pool, weighed), per_language=True, trial=True)

    def statistics_jobs(self, wanted: Callable[[PreparedRun], bool] | None = None) -> list[Job]:
        """What collects the dense statistics that runs lack which have blocks to solve, or the ``wanted`` ones."""
        jobs = []
        for pool in self.pools:
            targets = self._statistics(pool).targets(filter(wanted or self._unsolved, pool.runs))
            languages = {code for target in targets for code in target.coefficients}
            if not targets:
                continue
            files = [self._file(code, text) for code, text in pool.languages.items() if code in languages]
            job = self._job(pool.runs[0], pool.label, None, None, (), self.folders.all_statistics)
            jobs.append(replace(job, blocks=self._pool_shards(pool), pool=tuple(files), targets=tuple(targets)))
        return jobs

    def refuse_full_disk(self) -> None:
        """:class:`InputError` where the statistics that are to be collected find no room."""
        needed = 0
        for pool in self.pools:
            statistics = self._statistics(pool)
            needed += statistics.missing_bytes(statistics.targets(filter(self._unsolved, pool.runs)))
        refuse_full_disk(self.folders.all_statistics, needed)

    def _unsolved(self, run: PreparedRun) -> bool:
        """Not finished, and not all of its blocks are there."""
        if self.finished_result(run) is not None:
            return False
        blocks = self.folders.run(run.label).blocks
        return not all((blocks / block_file(index)).is_file() for index in range(run.model.decoder.blocks))

    def _statistics(self, pool: Pool) -> PoolMoments:
        return PoolMoments(pool, self.folders, {**self.bits(pool.runs[0]), "replicas": self.layout.replicas})

    def _taking(self, job: Job, pool: Pool, run: PreparedRun) -> Job:
        """A job that takes the moments of a pool as the run weighs them."""
        statistics = self._statistics(pool)
        return replace(
            job,
            blocks=self._pool_shards(pool),
            moments=statistics.sources(run),
            measured=statistics.measured(run),
        )

    def _pool_shards(self, pool: Pool) -> tuple[range, ...]:
        """The same for the statistics and all runs that take them: a stage finds what it has collected itself."""
        run = pool.runs[0]
        decoder = run.model.decoder
        texts = [(self._file(name, text), text.sequence_length) for name, text in run.evaluation.items()]
        evaluating = sum(len(file.languages) * length for file, length in texts)
        collecting = len(pool.languages) * pool.tokens
        costs = block_costs(decoder, run.spec.method.statistic, collecting, evaluating * len(pool.runs))
        return tuple(shard_blocks(costs, head_cost(decoder, evaluating * len(pool.runs)), self.layout.stages))

    def dense_jobs(self, run: PreparedRun) -> list[Job]:
        """Evaluations of the run's dense model that no earlier run or sweep has made."""
        return [
            self._job(
                run,
                f"dense-{run.model.name}-{name}",
                None,
                None,
                (self._file(name, text),),
                self._dense_directory(run, name),
            )
            for name, text in run.evaluation.items()
            if not self.dense_scores(run, name).is_file()
        ]

    def scores(self, run: PreparedRun, name: str) -> Path:
        """File of the run's token scores on one evaluation set."""
        return self.folders.run(run.label).scores(name)

    def dense_scores(self, run: PreparedRun, name: str) -> Path:
        """File of the dense model's token scores on the same set."""
        return scores_file(self._dense_directory(run, name), name)

    def _dense_directory(self, run: PreparedRun, name: str) -> Path:
        return self.folders.dense(run.model.fingerprint, run.evaluation[name].fingerprint, self.bits(run))

    def _job(
        self,
        run: PreparedRun,
        key: str,
        method: dict[str, Any] | None,
        calibration: JobText | None,
        evaluation: tuple[JobText, ...],
        directory: Path,
    ) -> Job:
        return Job(
            key=key,
            model=run.model.checkpoint.folder,
            compute_dtype=self._compute_dtype(run),
            microbatch=run.microbatch,
            method=method,
            calibration=calibration,
            evaluation=evaluation,
            directory=directory,
            blocks=tuple(self._shards(run, calibration, evaluation)),
            true_sequential=run.spec.true_sequential,
            per_language=run.spec.per_language,
            replicas=self.layout.replicas,
        )

    def _shards(self, run: PreparedRun, calibration: JobText | None, evaluation: Iterable[JobText]) -> list[range]:
        decoder = run.model.decoder
        calibrating = 0 if calibration is None else len(calibration.languages) * run.calibration.sequence_length
        evaluating = sum(len(one.languages) * run.evaluation[one.name].sequence_length for one in evaluation)
        # Measuring is one more forward, and a product of the same size with every linear's change.
        measuring = 2 * calibrating if run.spec.per_language else 0
        costs = block_costs(decoder, run.spec.method.statistic, calibrating, evaluating + measuring)
        return shard_blocks(costs, head_cost(decoder, evaluating), self.layout.stages)

    def _file(self, name: str, text: SegmentRequest) -> JobText:
        return job_text(name, self.segments[text.fingerprint])

    def _compute_dtype(self, run: PreparedRun) -> str:
        return self.numerics.compute_dtype(run.spec.compute_dtype, run.model.decoder.stored_dtype)


def _statistics(run: PreparedRun) -> dict[str, Any]:
    """What of the signature tells which moments are taken; the text of a pool is in that of the calibration."""
    if run.weights is None:
        return {"statistics": "propagated"}
    return {"statistics": "dense", "weights": run.shares}
