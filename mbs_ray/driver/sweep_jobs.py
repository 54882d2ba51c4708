"""From prepared runs to jobs for the stages: compressions, trials, collections of moments, dense baselines."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from pathlib import Path

from mbs_ray.cluster.job import Collect, Compress, CompressStored, Fit, Job, JobText, Route, Score, Try, Work, job_text
from mbs_ray.cluster.resources import Resources
from mbs_ray.cluster.sharding import block_costs, head_cost, shard_blocks
from mbs_ray.driver.pools import Pool, PoolMoments, is_unsolved, pool_moments, pools
from mbs_ray.methods import Method, Statistic, method_spec
from mbs_ray.run.directory import scores_file
from mbs_ray.run.prepare import PreparedRun
from mbs_ray.run.signature import forward_fields
from mbs_ray.run.sweep_folders import SweepFolders, is_listed
from mbs_ray.text.segment_file import SegmentSet
from mbs_ray.text.segment_request import SegmentRequest


@dataclass(frozen=True)
class SweepJobs:
    """Jobs of the runs of a sweep on known resources; ``segments`` are the drawn sets by fingerprint."""

    folders: SweepFolders
    resources: Resources
    segments: Mapping[str, SegmentSet]
    runs: Sequence[PreparedRun]

    @cached_property
    def pools(self) -> list[Pool]:
        """Pools of text and model that runs share."""
        return pools(self.runs)

    def run_job(self, run: PreparedRun) -> Job:
        """Make the job that compresses and evaluates a run."""
        directory, method = self.folders.run(run.label).path, method_spec(run.spec.method)
        evaluation = self._evaluation(run)
        if run.weights is None:
            calibration = self._file("calibration", run.calibration)
            fit = None
            if run.spec.fit_to is not None:
                strength = run.spec.fit_to.strength
                fit = Fit(self._file("dense", run.calibration), None if strength == "auto" else strength)
            spec = run.spec
            work = Compress(
                method,
                calibration,
                spec.true_sequential,
                spec.per_language,
                fit,
                run.amounts,
                spec.expert_tokens,
            )
            return self._job(run, run.label, directory, self._shards(run, calibration, evaluation), work, evaluation)
        pool = next((one for one in self.pools if run in one.runs), None)
        if pool is None:
            shards = self._shards(run, None, evaluation)
            stored = CompressStored(method, (), amounts=run.amounts)
            return self._job(run, run.label, directory, shards, stored, evaluation)
        moments = self._moments(pool)
        measured = moments.measured(run) if run.spec.per_language else ()
        stored = CompressStored(method, moments.sources(run), measured, run.amounts)
        return self._job(run, run.label, directory, self._pool_shards(pool), stored, evaluation)

    def trial_job(
        self, run: PreparedRun, weights: Mapping[str, float], number: int, directory: Path, method: Method
    ) -> Job:
        """Make the job of a trial with weights and method: reports under ``directory`` of each language's loss."""
        pool = next(one for one in self.pools if run in one.runs)
        weighed = replace(run, weights={code: Fraction(one) for code, one in weights.items()})
        moments = self._moments(pool)
        sources, measured = moments.sources(weighed), moments.measured(weighed)
        trial = Try(run.label, number, method_spec(method), sources, measured)
        return self._job(run, f"{run.label}-trial{number}", directory, self._pool_shards(pool), trial, ())

    def collecting_jobs(self, wanted: Callable[[PreparedRun], bool] | None = None) -> list[Job]:
        """Make jobs that collect the dense moments that unsolved runs, or the ``wanted`` ones, lack."""
        jobs = []
        for pool in self.pools:
            unsolved = (run for run in pool.runs if (wanted or self._is_unsolved)(run))
            targets = self._moments(pool).targets(unsolved)
            languages = {code for target in targets for code in target.coefficients}
            if not targets:
                continue
            texts = tuple(self._file(code, text) for code, text in pool.languages.items() if code in languages)
            work = Collect(texts, tuple(targets))
            folder = self.folders.all_statistics
            jobs.append(self._job(pool.runs[0], pool.label, folder, self._pool_shards(pool), work, ()))
        return jobs

    def routing_job(self, run: PreparedRun, directory: Path) -> Job:
        """Make the job that counts, in reports under ``directory``, which experts the run's calibration set reaches."""
        calibration = self._file("calibration", run.calibration)
        # What a forward costs, as for text that is evaluated: no moment is collected.
        tokens = len(calibration.languages) * run.calibration.sequence_length
        costs = block_costs(run.model.decoder, Statistic.NONE, 0, tokens)
        shards = tuple(shard_blocks(costs, 0.0, self.resources.layout.stages))
        key = f"routes-{run.model.name}-seed{run.spec.seed}-{directory.name.removeprefix('routes-')[:6]}"
        return self._job(run, key, directory, shards, Route(calibration), ())

    def dense_jobs(self, run: PreparedRun) -> list[Job]:
        """Make jobs that evaluate the run's dense model, where no earlier run or sweep has done it."""
        jobs = []
        for name, text in run.evaluation.items():
            if is_listed(self.dense_scores(run, name), self.folders.out):
                continue
            evaluation = (self._file(name, text),)
            key, directory = f"dense-{run.model.name}-{name}", self.dense_directory(run, name)
            shards = self._shards(run, None, evaluation)
            jobs.append(self._job(run, key, directory, shards, Score(), evaluation))
        return jobs

    def scores(self, run: PreparedRun, name: str) -> Path:
        """Return the file of the run's token scores on one evaluation set."""
        return self.folders.run(run.label).scores(name)

    def dense_scores(self, run: PreparedRun, name: str) -> Path:
        """Return the file of the dense model's token scores on the same set."""
        return scores_file(self.dense_directory(run, name), name)

    def dense_directory(self, run: PreparedRun, name: str) -> Path:
        """Return the folder of the dense model's evaluation on one set."""
        fields = forward_fields(run, self.resources.numerics)
        return self.folders.dense(run.model.fingerprint, run.evaluation[name].fingerprint, fields)

    def _is_unsolved(self, run: PreparedRun) -> bool:
        return is_unsolved(self.folders, run)

    def _moments(self, pool: Pool) -> PoolMoments:
        return pool_moments(pool, self.folders, self.resources)

    def _job(
        self,
        run: PreparedRun,
        key: str,
        directory: Path,
        blocks: tuple[range, ...],
        work: Work,
        evaluation: tuple[JobText, ...],
    ) -> Job:
        return Job(
            key=key,
            model=run.model.checkpoint.folder,
            compute_dtype=forward_fields(run, self.resources.numerics)["compute_dtype"],
            microbatch=run.microbatch,
            directory=directory,
            blocks=blocks,
            work=work,
            evaluation=evaluation,
            replicas=self.resources.layout.replicas,
        )

    def _pool_shards(self, pool: Pool) -> tuple[range, ...]:
        """Shard the blocks for the collecting and all runs that use it alike: a stage reads what it collected."""
        run = pool.runs[0]
        decoder = run.model.decoder
        evaluating = len(pool.runs) * self._tokens(run, self._evaluation(run))
        collecting = len(pool.languages) * pool.tokens
        costs = block_costs(decoder, run.spec.method.statistic, collecting, evaluating)
        return tuple(shard_blocks(costs, head_cost(decoder, evaluating), self.resources.layout.stages))

    def _shards(
        self, run: PreparedRun, calibration: JobText | None, evaluation: Iterable[JobText]
    ) -> tuple[range, ...]:
        decoder = run.model.decoder
        calibrating = 0 if calibration is None else len(calibration.languages) * run.calibration.sequence_length
        evaluating = self._tokens(run, evaluation)
        # Measuring is one more forward, and a product of the same size with every linear's change; so is fitting.
        measuring = 2 * calibrating * (run.spec.per_language + (run.spec.fit_to is not None))
        statistic = run.spec.method.statistic if run.spec.fit_to is None else Statistic.FULL
        costs = block_costs(decoder, statistic, calibrating, evaluating + measuring)
        return tuple(shard_blocks(costs, head_cost(decoder, evaluating), self.resources.layout.stages))

    def _evaluation(self, run: PreparedRun) -> tuple[JobText, ...]:
        return tuple(self._file(name, text) for name, text in run.evaluation.items())

    def _tokens(self, run: PreparedRun, texts: Iterable[JobText]) -> int:
        return sum(len(one.languages) * run.evaluation[one.name].sequence_length for one in texts)

    def _file(self, name: str, text: SegmentRequest) -> JobText:
        return job_text(name, self.segments[text.fingerprint])
