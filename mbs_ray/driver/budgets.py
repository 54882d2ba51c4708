"""Budgets of a sweep: trials with several amounts on the stages, and what each linear of a run is given."""

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mbs_ray.cluster.job import Job
from mbs_ray.compression.block_report import read_block_reports
from mbs_ray.compression.dealing import Tried, deal, ramp, ramp_of_widths
from mbs_ray.compression.sensitivity import Sensitivity, predicted_increase
from mbs_ray.compression.stored_moments import StoredMoments
from mbs_ray.driver.pools import Pool, pool_moments
from mbs_ray.driver.progress import Progress
from mbs_ray.driver.sensitivities import SensitivityFile
from mbs_ray.driver.stage_driver import StageDriver
from mbs_ray.driver.sweep_jobs import SweepJobs
from mbs_ray.errors import InputError
from mbs_ray.files import digest, own_content, read_json, write_json
from mbs_ray.methods import Amounts, Method, method_spec, with_amount
from mbs_ray.run.modes import Budget
from mbs_ray.run.prepare import PreparedRun


def pilots(runs: Iterable[PreparedRun]) -> list[PreparedRun]:
    """List the runs by which amounts are tried, with the weights of the runs that they are for."""
    known = [(run, run.pilot) for run in runs if run.pilot is not None]
    return [replace(pilot, device=run.device, weights=run.weights or pilot.weights) for run, pilot in known]


def measure_sensitivities(jobs: SweepJobs, progress: Progress) -> None:
    """Measure what the budgets of these jobs need of sensitivities, before the stages take the devices."""
    for budget in _budgets(jobs):
        budget.sensitivities.measured(progress)


def find_amounts(jobs: SweepJobs, driver: StageDriver, progress: Progress) -> list[PreparedRun]:
    """Return the runs of these jobs, those with a budget with the amounts of their linears.

    A trial that an earlier command finished, or one for another run with the same text, is not repeated. Raises
    :class:`InputError` where a trial fails.
    """
    budgets = {budget.pilot.label: budget for budget in _budgets(jobs)}
    open_: dict[Path, _Trial] = {}
    for budget in budgets.values():
        for trial in budget.trials:
            if not trial.file.is_file():
                open_.setdefault(trial.file, trial)
    if open_:
        labels = {trial.label for trial in open_.values()}
        collecting = next(iter(budgets.values())).jobs.collecting_jobs(lambda run: run.label in labels)
        trials = {trial.job.key: trial for trial in open_.values()}

        def ended(job: Job, error: Exception | None) -> Iterable[Job]:
            if error is not None:
                raise InputError(f"{job.key} failed: {' '.join(str(error).split())}") from error
            if job.key in trials:
                trials[job.key].conclude(budgets[trials[job.key].label].sensitivities.measured(progress))
            return ()

        driver.work([*collecting, *(trial.job for trial in open_.values())], ended)
    return [_dealt(run, budgets.get(run.label), progress) for run in jobs.runs]


def _dealt(run: PreparedRun, budget: "_RunBudget | None", progress: Progress) -> PreparedRun:
    if run.spec.budget is None:
        return run
    dealt = _ramp(run, run.spec.budget) if budget is None else budget.dealt()
    values = [value for block in dealt["amounts"]["of_block"].values() for value in block.values()]
    line = (
        f"{run.label}: {dealt['amounts']['field']} {min(values):g} to {max(values):g}, {dealt['mean']:.6g} on average"
    )
    if dealt["predicted"]:
        increases = {name: np.mean(list(one.values())) for name, one in dealt["predicted"].items()}
        told = ", ".join(f"{increase:.4g} {name}" for name, increase in increases.items())
        line += f"; predicted increase in nats per token, mean of the languages: {told}"
    progress.say(line)
    return replace(run, dealt=dealt)


def _ramp(run: PreparedRun, budget: Budget) -> dict[str, Any]:
    linears, weights = _linears(run)
    field, mean = budget.field(run.spec.method), budget.mean(run.spec.method)
    blocks = [block for block, _ in linears]
    if field == "bits":
        amounts = ramp_of_widths(blocks, weights, mean)
    else:
        amounts = ramp(blocks, weights, mean, budget.reach(run.spec.method))
    return _content(linears, weights, field, amounts, {})


def _content(
    linears: list[tuple[int, str]],
    weights: np.ndarray,
    field: str,
    amounts: np.ndarray,
    predicted: Mapping[str, Mapping[str, float]],
) -> dict[str, Any]:
    """Describe amounts as a run keeps them, beside its result."""
    of_block: dict[int, dict[str, float]] = {}
    for (block, linear), amount in zip(linears, amounts, strict=True):
        of_block.setdefault(block, {})[linear] = round(float(amount), 9)
    mean = float((amounts * weights).sum() / weights.sum())
    return {"mean": mean, "predicted": predicted, "amounts": Amounts(field, of_block).plain()}


def _linears(run: PreparedRun) -> tuple[list[tuple[int, str]], np.ndarray]:
    """List (block, linear) of a model, and how many weights each has."""
    decoder = run.model.decoder
    shapes = {(block, name): shape for block in range(decoder.blocks) for name, shape in decoder.linears(block).items()}
    return list(shapes), np.array([rows * columns for rows, columns in shapes.values()])


def _budgets(jobs: SweepJobs) -> "list[_RunBudget]":
    own = replace(jobs, runs=pilots(jobs.runs))
    specs = {run.label: run.spec.budget for run in jobs.runs}
    return [_RunBudget(pilot, spec, own) for pilot in own.runs if (spec := specs[pilot.label]) is not None]


@dataclass(frozen=True)
class _RunBudget:
    """The budget of one run: its trials, and what they say; ``jobs`` are those of the pilots."""

    pilot: PreparedRun
    spec: Budget
    jobs: SweepJobs

    @cached_property
    def pool(self) -> Pool:
        return next(pool for pool in self.jobs.pools if self.pilot in pool.runs)

    @cached_property
    def sensitivities(self) -> SensitivityFile:
        texts = {code: text for code, text in self.pool.languages.items() if code in self.pilot.allocation}
        return SensitivityFile(self.pilot, texts, self.spec.sensitivity_segments, self.jobs)

    @cached_property
    def trials(self) -> "list[_Trial]":
        """One trial for each amount, in the order of the amounts."""
        method = self.pilot.spec.method
        field = self.spec.field(method)
        return [
            _Trial(self, number, with_amount(method, field, amount))
            for number, amount in enumerate(self.spec.tried(method))
        ]

    def dealt(self) -> dict[str, Any]:
        """Deal the amount out by what the trials, which have ended, predict."""
        method, (linears, weights) = self.pilot.spec.method, _linears(self.pilot)
        field, mean = self.spec.field(method), self.spec.mean(method)
        amounts = np.array(self.spec.tried(method))
        increases = [trial.increase() for trial in self.trials]
        languages = list(self.pilot.allocation)
        cost = np.array([[[one[key].get(code, 0.0) for code in languages] for one in increases] for key in linears])
        tried = Tried(amounts, amounts if field == "bits" else 1 - amounts, cost, weights)
        # Programs that read widths of several linears as one, as of queries, keys and values, want one width of them.
        groups = self._sharing(linears) if field == "bits" else [[at] for at in range(len(linears))]
        tried = (tried if field == "bits" else tried.refined()).joined(groups)
        chosen = deal(tried, mean if field == "bits" else 1 - mean, self.spec.objective)
        predicted = {"dealt": dict(zip(languages, map(float, tried.predicted(chosen)), strict=True))}
        alike = np.flatnonzero(np.isclose(tried.amounts, mean))
        if len(alike):
            uniform = tried.predicted(np.full(len(chosen), alike[0]))
            predicted["uniform"] = dict(zip(languages, map(float, uniform), strict=True))
        own = np.empty(len(linears))
        for group, at in zip(groups, chosen, strict=True):
            own[list(group)] = tried.amounts[at]
        return _content(linears, weights, field, own, predicted)

    def _sharing(self, linears: list[tuple[int, str]]) -> list[list[int]]:
        """Group the places of linears that share an input, as the moments that were collected tell."""
        places = {key: at for at, key in enumerate(linears)}
        source = pool_moments(self.pool, self.jobs.folders, self.jobs.resources).measured(self.pilot)[0]
        return [
            [places[block, name] for name in group]
            for block in range(self.pilot.model.decoder.blocks)
            for group in StoredMoments(source.folder, block).inputs
        ]


@dataclass(frozen=True)
class _Trial:
    """All linears solved with one amount; what that costs each language stays in a file, which runs share."""

    budget: _RunBudget
    number: int
    method: Method

    @property
    def label(self) -> str:
        return self.budget.pilot.label

    @cached_property
    def file(self) -> Path:
        pilot, jobs = self.budget.pilot, self.budget.jobs
        tried = json.dumps([method_spec(self.method), pilot.shares], sort_keys=True)
        return jobs.folders.adaptive / f"tried-{digest(self.budget.sensitivities.key, tried)}.json"

    @cached_property
    def job(self) -> Job:
        pilot, folder = self.budget.pilot, self.file.with_suffix("")
        (folder / "blocks").mkdir(parents=True, exist_ok=True)
        weights = {code: float(one) for code, one in (pilot.weights or {}).items()}
        return self.budget.jobs.trial_job(pilot, weights, self.number, folder, self.method)

    def conclude(self, sensitivity: Sensitivity) -> None:
        """Keep the predicted increase of every linear, and remove the reports."""
        folder = self.file.with_suffix("")
        found: dict[str, dict[str, dict[str, float]]] = {}
        for report in read_block_reports(folder / "blocks"):
            own = found.setdefault(str(report.block), {})
            for linear in self.budget.pilot.model.decoder.linears(report.block):
                errors = [(report.block, one) for one in report.layer_error if one.linear == linear]
                own[linear] = predicted_increase(sensitivity, errors, self.budget.pool.tokens)
        write_json(self.file, found)
        shutil.rmtree(folder, ignore_errors=True)

    def increase(self) -> dict[tuple[int, str], dict[str, float]]:
        """Read the predicted increase by (block, linear) and language, in nats per token."""
        content = read_json(self.file)
        with own_content(self.file):
            return {(int(block), name): own for block, linears in content.items() for name, own in linears.items()}
