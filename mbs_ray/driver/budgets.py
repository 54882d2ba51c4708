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
from mbs_ray.cluster.resources import Resources
from mbs_ray.compression.block_report import read_block_reports
from mbs_ray.compression.sensitivity import Sensitivity, predicted_increase
from mbs_ray.compression.stored_moments import StoredMoments
from mbs_ray.driver.pools import Pool, pool_moments
from mbs_ray.driver.progress import Progress
from mbs_ray.driver.sensitivities import SensitivityFile
from mbs_ray.driver.stage_driver import StageDriver
from mbs_ray.driver.sweep_jobs import SweepJobs
from mbs_ray.errors import InputError
from mbs_ray.files import digest, own_content, read_json, write_json
from mbs_ray.languages.dealing import Tried, deal, ramp, ramp_of_widths
from mbs_ray.methods import Amounts, Method, method_spec, with_amount
from mbs_ray.run.modes import Budget
from mbs_ray.run.prepare import PreparedRun
from mbs_ray.run.signature import finished_result
from mbs_ray.run.sweep_folders import SweepFolders

#: Block and name of a linear.
Linear = tuple[int, str]


def pilots(runs: Iterable[PreparedRun]) -> list[PreparedRun]:
    """List the runs by which amounts are tried, with the weights of the runs that they are for."""
    known = [(run, run.pilot) for run in runs if run.pilot is not None]
    return [replace(pilot, device=run.device, weights=run.weights or pilot.weights) for run, pilot in known]


def untried(runs: Iterable[PreparedRun], folders: SweepFolders, resources: Resources) -> list[PreparedRun]:
    """List the pilots of runs that are not finished and lack a trial: those whose moments are to be collected."""
    open_ = [run for run in runs if run.pilot is not None and finished_result(folders, run) is None]
    return [budget.pilot for budget in _budgets(SweepJobs(folders, resources, {}, open_)) if budget.untried()]


def measure_sensitivities(jobs: SweepJobs, progress: Progress) -> None:
    """Measure what the budgets of these jobs need of sensitivities, before the stages take the devices."""
    for budget in _budgets(jobs):
        # Which trials an adaptive run lacks is not known before its weights are.
        if budget.untried() or budget.pilot.adaptive is not None:
            budget.sensitivities.measured(progress)


def find_amounts(jobs: SweepJobs, driver: StageDriver, progress: Progress) -> list[PreparedRun]:
    """Return the runs of these jobs, those with a budget with the amounts of their linears.

    A trial that an earlier command finished, or one for another run with the same text, is not repeated. Raises
    :class:`InputError` where a trial fails.
    """
    budgets = {budget.pilot.label: budget for budget in _budgets(jobs)}
    open_: dict[Path, _Trial] = {}
    for budget in budgets.values():
        for trial in budget.untried():
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
    amounts = Amounts.from_plain(dealt["amounts"])
    line = f"{run.label}: {amounts.field} {amounts.least:g} to {amounts.most:g}, {dealt['mean']:.6g} on average"
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
    linears: list[Linear],
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


def _linears(run: PreparedRun) -> tuple[list[Linear], np.ndarray]:
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

    def untried(self) -> "list[_Trial]":
        """List the trials that nobody has finished."""
        return [trial for trial in self.trials if not trial.file.is_file()]

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
        places = {key: at for at, key in enumerate(linears)}
        if field == "bits":
            groups = [[places[one] for one in group] for group in self.trials[0].sharing()]
        else:
            tried, groups = tried.refined(), [[at] for at in places.values()]
        tried = tried.joined(groups)
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


@dataclass(frozen=True)
class _Trial:
    """All linears solved with one amount; what that costs each language stays in a file that runs and sweeps share."""

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

    @property
    def folder(self) -> Path:
        """Folder of the reports, until the trial is concluded; another sweep that tries the same has its own."""
        return self.file.with_name(f"{self.file.stem}-{self.budget.jobs.folders.name}")

    @cached_property
    def job(self) -> Job:
        pilot, folder = self.budget.pilot, self.folder
        (folder / "blocks").mkdir(parents=True, exist_ok=True)
        return self.budget.jobs.trial_job(pilot, pilot.shares or {}, self.number, folder, self.method)

    def conclude(self, sensitivity: Sensitivity) -> None:
        """Keep the predicted increase of every linear, and which share an input; remove the reports.

        Raises :class:`InputError` where a report is missing.
        """
        budget, decoder = self.budget, self.budget.pilot.model.decoder
        reports = read_block_reports(self.folder / "blocks")
        if len(reports) < decoder.blocks:
            raise InputError(
                f"{self.folder}: lacks reports of blocks; give the same command again to repeat the trials"
            )
        increase: dict[str, dict[str, dict[str, float]]] = {}
        for report in reports:
            for linear in decoder.linears(report.block):
                errors = [(report.block, one) for one in report.layer_error if one.linear == linear]
                predicted = predicted_increase(sensitivity, errors, budget.pool.tokens)
                increase.setdefault(str(report.block), {})[linear] = predicted
        source = pool_moments(budget.pool, budget.jobs.folders, budget.jobs.resources).measured(budget.pilot)[0]
        sharing = [list(map(list, StoredMoments(source.folder, block).inputs)) for block in range(decoder.blocks)]
        write_json(self.file, {"increase": increase, "sharing": sharing})
        shutil.rmtree(self.folder, ignore_errors=True)

    def increase(self) -> dict[Linear, dict[str, float]]:
        """Read the predicted increase by linear and language, in nats per token."""
        content = read_json(self.file)
        with own_content(self.file):
            return {linear: content["increase"][str(linear[0])][linear[1]] for linear in _linears(self.budget.pilot)[0]}

    def sharing(self) -> list[list[Linear]]:
        """Read which linears share an input."""
        content = read_json(self.file)
        with own_content(self.file):
            groups = [[(block, name) for name in one] for block, own in enumerate(content["sharing"]) for one in own]
            if sorted(linear for one in groups for linear in one) != sorted(_linears(self.budget.pilot)[0]):
                raise ValueError("other linears than the model's")
            return groups
