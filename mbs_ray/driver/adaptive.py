"""Adaptive samplings of a sweep: sensitivities, trials on the stages, and the weights that the runs are given."""

import json
import shutil
from collections.abc import Iterable
from dataclasses import asdict, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from mbs_ray.cluster.job import Job, Try
from mbs_ray.compression.block_report import read_block_reports
from mbs_ray.compression.sensitivity import Sensitivity, predicted_increase
from mbs_ray.driver.pools import Pool
from mbs_ray.driver.progress import Progress
from mbs_ray.driver.sensitivities import SensitivityFile
from mbs_ray.driver.stage_driver import StageDriver
from mbs_ray.driver.sweep_jobs import SweepJobs
from mbs_ray.errors import InputError
from mbs_ray.files import digest, read_json_if_there, write_json
from mbs_ray.languages.sampling_registry import distribution_for, sampling_spec
from mbs_ray.languages.samplings import Proportional
from mbs_ray.languages.search import Search, Trial, sensitive_weights
from mbs_ray.methods import method_spec
from mbs_ray.run.prepare import PreparedRun

_FOUND = "found.json"


def find_weights(jobs: SweepJobs, driver: StageDriver, progress: Progress) -> list[PreparedRun]:
    """Return the runs of these jobs, adaptive ones with the weights that were found for them, now or earlier.

    Raises :class:`InputError` where a trial fails.
    """
    searches = {run.label: _RunSearch(run, jobs, progress) for run in jobs.runs if run.adaptive is not None}
    # Runs that differ in their evaluation alone have one folder, and so one search.
    open_: dict[Path, _RunSearch] = {}
    for search in searches.values():
        if search.found() is None:
            open_.setdefault(search.folder, search)
    if open_:
        searching = {search.label for search in open_.values()}
        collecting = jobs.collecting_jobs(lambda run: run.label in searching)
        # One after the other before the stages start: each takes a whole device.
        following = [search.begin() for search in open_.values()]

        def ended(job: Job, error: Exception | None) -> Iterable[Job]:
            if error is not None:
                raise InputError(f"{job.key} failed: {' '.join(str(error).split())}") from error
            return searches[job.work.run].go_on() if isinstance(job.work, Try) else ()

        driver.work([*collecting, *(job for first in following for job in first)], ended)
    settled = []
    for run in jobs.runs:
        found = searches[run.label].found() if run.label in searches else None
        if found is not None:
            weights = found["trials"][found["best"]]["weights"]
            # In the order of the languages, in which their moments are summed, not that of the file.
            run = replace(run, weights={code: Fraction(weights[code]) for code in run.allocation}, search=found)
            values = ", ".join(f"{one:.4g}" for one in found["values"])
            progress.say(
                f"{run.label}: trial {found['best'] + 1} of {len(found['trials'])} has the least {found['objective']} "
                f"({values})"
            )
            progress.allocation(run.label, run.allocation, run.shares)
        settled.append(run)
    return settled


class _RunSearch:
    """The search for one run's weights. A trial that an earlier command finished is not repeated."""

    def __init__(self, run: PreparedRun, jobs: SweepJobs, progress: Progress) -> None:
        sampling = run.adaptive
        assert sampling is not None
        self._run, self._jobs, self._progress, self._sampling = run, jobs, progress, sampling
        self._pool: Pool = next(pool for pool in jobs.pools if run in pool.runs)
        self._texts = {code: text for code, text in self._pool.languages.items() if code in run.allocation}
        self._gradients = SensitivityFile(run, self._texts, sampling.sensitivity_segments, jobs)
        method = [json.dumps(one, sort_keys=True) for one in (method_spec(run.spec.method), sampling_spec(sampling))]
        self.label = run.label
        self.folder = jobs.folders.adaptive / digest(self._gradients.key, *method, json.dumps(self._proportional()))
        self._search: Search | None = None
        self._sensitivity: Sensitivity = {}
        self._tried: list[Trial] = []

    def found(self) -> dict[str, Any] | None:
        """Return all trials with their values, and the index of the best; None while the search is not over."""
        return read_json_if_there(self.folder / _FOUND)

    def begin(self) -> list[Job]:
        """Return the job of the first trial that is missing; none where the search is over."""
        self._sensitivity = self._gradients.measured(self._progress)
        languages = list(self._texts)
        equal = dict.fromkeys(languages, 1.0)
        proportional = self._proportional()
        starts = [equal, *([proportional] if proportional else [])]
        if self._sampling.objective == "mean":
            starts.append(sensitive_weights(self._sensitivity, languages))
        if self._sampling.objective == "regret":
            starts.append({code: proportional[code] ** 0.5 for code in languages})
        self._search = Search(self._sampling.objective, self._sampling.trials, starts)
        return self.go_on()

    def go_on(self) -> list[Job]:
        """Return the next trial's job; where the search is over, write what it found and return none."""
        assert self._search is not None
        tried = self._tried
        while (weights := self._search.next(tried)) is not None:
            increase = self._increase(len(tried))
            if increase is None:
                folder = self._trial_folder(len(tried))
                (folder / "blocks").mkdir(parents=True, exist_ok=True)
                return [self._jobs.trial_job(self._run, weights, len(tried), folder, self._run.spec.method)]
            tried.append(Trial(weights, increase))
        found = {
            "objective": self._sampling.objective,
            "best": self._search.best(tried),
            "values": [self._search.value(tried, one) for one in tried],
            "trials": [asdict(one) for one in tried],
        }
        write_json(self.folder / _FOUND, found)
        for number in range(len(tried)):
            shutil.rmtree(self._trial_folder(number), ignore_errors=True)
        return []

    def _increase(self, number: int) -> dict[str, float] | None:
        """Predict each language's increase from a trial's block reports; None where blocks are missing."""
        reports = read_block_reports(self._trial_folder(number) / "blocks")
        if len(reports) < self._run.model.decoder.blocks:
            return None
        errors = [(report.block, one) for report in reports for one in report.layer_error]
        return predicted_increase(self._sensitivity, errors, self._pool.tokens)

    def _trial_folder(self, number: int) -> Path:
        return self.folder / f"trial-{number}"

    def _proportional(self) -> dict[str, float]:
        """Weights of proportional sampling; none where the model's distribution is not known."""
        spec = self._run.spec
        distribution = distribution_for(spec.sampling, spec.model, spec.distribution, spec.revision)
        if distribution is None:
            return {}
        weights = Proportional().weights(distribution, self._run.languages)
        return {code: float(weights.get(code, 0)) for code in self._texts}
