"""Adaptive samplings of a sweep: sensitivities, trials on the stages, and the weights that the runs are given."""

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from mbs_ray.cluster.job import Job, Try
from mbs_ray.cluster.sensitivity_task import sensitivity_on_cluster
from mbs_ray.compression.block_report import read_block_reports
from mbs_ray.compression.sensitivity import Sensitivity, predicted_increase
from mbs_ray.driver.pools import Pool
from mbs_ray.driver.progress import Progress
from mbs_ray.driver.stage_driver import StageDriver
from mbs_ray.driver.sweep_jobs import SweepJobs
from mbs_ray.errors import InputError
from mbs_ray.files import digest, own_content, read_json, read_json_if_there, write_json
from mbs_ray.languages.sampling_registry import distribution_for, sampling_spec
from mbs_ray.languages.samplings import Proportional
from mbs_ray.languages.search import Search, Trial, sensitive_weights
from mbs_ray.methods import method_spec
from mbs_ray.run.prepare import PreparedRun
from mbs_ray.run.signature import forward_fields

FORMAT = 1  # raise it with any change that finds other weights for the same runs
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
        self._fields = forward_fields(run, jobs.resources.numerics)
        forward = {**self._fields, "replicas": jobs.resources.layout.replicas}
        self._texts = {code: text for code, text in self._pool.languages.items() if code in run.allocation}
        of_model = [str(FORMAT), run.model.fingerprint, json.dumps(forward, sort_keys=True)]
        of_texts = [text.fingerprint for text in self._texts.values()]
        gradients = digest(*of_model, *of_texts, str(sampling.sensitivity_segments))
        self._sensitivity_file = jobs.folders.adaptive / f"sensitivity-{gradients}.json"
        method = [json.dumps(one, sort_keys=True) for one in (method_spec(run.spec.method), sampling_spec(sampling))]
        self.label = run.label
        self.folder = jobs.folders.adaptive / digest(gradients, *method, json.dumps(self._proportional()))
        self._search: Search | None = None
        self._sensitivity: Sensitivity = {}
        self._tried: list[Trial] = []

    def found(self) -> dict[str, Any] | None:
        """Return all trials with their values, and the index of the best; None while the search is not over."""
        return read_json_if_there(self.folder / _FOUND)

    def begin(self) -> list[Job]:
        """Return the job of the first trial that is missing; none where the search is over."""
        self._sensitivity = self._measured_sensitivity()
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
                return [self._jobs.trial_job(self._run, weights, len(tried), folder)]
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

    def _measured_sensitivity(self) -> Sensitivity:
        """Read the sensitivity from its file, which runs of the same model and text share, or measure it now."""
        if not self._sensitivity_file.is_file():
            run, jobs = self._run, self._jobs
            with self._progress.steps(f"sensitivity of {run.model.name}") as notify:
                found = sensitivity_on_cluster(
                    run.model.checkpoint.folder,
                    self._fields["compute_dtype"],
                    run.microbatch,
                    {code: jobs.segments[text.fingerprint].path for code, text in self._texts.items()},
                    self._sampling.sensitivity_segments,
                    jobs.resources.numerics,
                    notify,
                )
            write_json(self._sensitivity_file, {str(block): linears for block, linears in found.items()})
        content: Mapping[str, Any] = read_json(self._sensitivity_file)
        with own_content(self._sensitivity_file):
            return {int(block): linears for block, linears in content.items()}
