"""Further segments for starved experts of a sweep: what the dense model routes where, and the text that is added."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mbs_ray.cluster.job import Job
from mbs_ray.compression.block_report import BlockReport, read_block_reports
from mbs_ray.compression.routing import least_tokens
from mbs_ray.driver.progress import Progress
from mbs_ray.driver.stage_driver import StageDriver
from mbs_ray.driver.sweep_jobs import SweepJobs
from mbs_ray.driver.sweep_texts import draw_texts
from mbs_ray.errors import InputError
from mbs_ray.files import digest
from mbs_ray.languages.further_segments import Routed, further_segments
from mbs_ray.methods import Statistic
from mbs_ray.model.decoder import Decoder
from mbs_ray.model.experts import expert_of
from mbs_ray.run.prepare import PreparedRun
from mbs_ray.run.signature import forward_fields
from mbs_ray.run.sweep_folders import SweepFolders

FORMAT = 1  # raise it with any change that counts other tokens on the same text


def awaits_top_up(run: PreparedRun) -> bool:
    """Check whether further segments are still to be found for a run; methods that see no text get none."""
    asked = run.spec.expert_segments > 0 and run.spec.method.statistic is not Statistic.NONE
    return asked and run.top_up is None


def with_kept_top_ups(runs: Sequence[PreparedRun], folders: SweepFolders) -> list[PreparedRun]:
    """Return the runs, those whose further segments an earlier command found with these.

    They are not found anew: another version might count other tokens, and the run go on with other text.
    """
    kept = {run.label: folders.run(run.label).top_up() if awaits_top_up(run) else None for run in runs}
    return [
        _topped_up(run, top_up) if (top_up := kept[run.label]) and top_up["asked"] == _asked(run) else run
        for run in runs
    ]


def find_top_ups(jobs: SweepJobs, driver: StageDriver, progress: Progress) -> SweepJobs:
    """Return the jobs with further segments drawn for the runs that are to have them.

    Runs with the same model and text share one count, which an earlier command may have begun or finished. Raises
    :class:`InputError` where it fails, or a language has not so much text.
    """
    open_ = [run for run in jobs.runs if awaits_top_up(run)]
    routing: dict[Path, Job] = {}
    for run in open_:
        folder = _routes(run, jobs)
        if folder not in routing and len(_reports(folder)) < run.model.decoder.blocks:
            (folder / "blocks").mkdir(parents=True, exist_ok=True)
            routing[folder] = jobs.routing_job(run, folder)
    if routing:
        driver.work(routing.values(), _ended)
    found = {run.label: _topped_up(run, _found(run, _reports(_routes(run, jobs)))) for run in open_}
    drawn = {**jobs.segments}
    if found:
        driver.leave_a_cpu()
        try:
            drawn |= draw_texts(list(found.values()), jobs.folders, progress)
        except InputError as error:
            raise InputError(f"expert_segments, more text for starved experts: {error}") from error
    runs = [found.get(run.label, run) for run in jobs.runs]
    for run in runs:
        if run.top_up is not None:
            progress.say(f"{run.label}: {_said(run.top_up)}")
    return replace(jobs, segments=drawn, runs=runs)


def _ended(job: Job, error: Exception | None) -> Iterable[Job]:
    if error is not None:
        raise InputError(f"{job.key} failed: {' '.join(str(error).split())}") from error
    return ()


def _asked(run: PreparedRun) -> dict[str, Any]:
    """Describe all that further segments depend on besides the machine: ``run`` is without them."""
    spec = run.spec
    fingerprints = {"model": run.model.fingerprint, "calibration": run.calibration.fingerprint}
    return {**fingerprints, "expert_tokens": spec.expert_tokens, "expert_segments": spec.expert_segments}


def _topped_up(run: PreparedRun, top_up: Mapping[str, Any]) -> PreparedRun:
    allocation = {code: count + top_up["segments"].get(code, 0) for code, count in run.allocation.items()}
    calibration = replace(run.calibration, allocation=allocation)
    return replace(run, allocation=allocation, calibration=calibration, top_up=top_up)


def _routes(run: PreparedRun, jobs: SweepJobs) -> Path:
    """Return the folder of the counts, of which sweeps under one ``out`` have one for the same text and forward."""
    forward = json.dumps(forward_fields(run, jobs.resources.numerics), sort_keys=True)
    key = digest(str(FORMAT), run.model.fingerprint, run.calibration.fingerprint, forward)
    return jobs.folders.adaptive / f"routes-{key}"


def _reports(folder: Path) -> list[BlockReport]:
    return read_block_reports(folder / "blocks")


def _found(run: PreparedRun, reports: Sequence[BlockReport]) -> dict[str, Any]:
    """Deal out further segments, and say for which experts, with the tokens they have and are expected to get."""
    decoder, languages = run.model.decoder, list(run.allocation)
    if len(reports) < decoder.blocks:
        raise InputError(
            f"{run.label}: tokens of starved experts were not counted in {decoder.blocks - len(reports)} blocks; give "
            "the same command again, which counts them"
        )
    experts: list[tuple[int, str, int]] = []
    least: list[int] = []
    tokens: list[list[int]] = [[] for _ in languages]
    for report in reports:
        for mixture in report.mixtures:
            own = dict(zip(mixture.languages, mixture.tokens, strict=True))
            count = len(mixture.tokens[0])
            experts += [(report.block, mixture.mixture, number) for number in range(count)]
            needed = least_tokens(_columns(decoder, report.block, mixture.mixture), run.spec.expert_tokens)
            least += [needed] * count
            for row, language in zip(tokens, languages, strict=True):
                row += own[language]
    routed = Routed(np.array(tokens), tuple(run.allocation.values()), np.array(least))
    further = further_segments(routed, run.spec.expert_segments)
    expected = routed.expected(further)
    starved = np.flatnonzero(routed.starved)
    return {
        "asked": _asked(run),
        "segments": {code: count for code, count in zip(languages, further, strict=True) if count},
        "starved": {"before": len(starved), "expected": int((expected < routed.least).sum())},
        "experts": [
            {
                "block": experts[at][0],
                "mixture": experts[at][1],
                "expert": experts[at][2],
                "least": int(routed.least[at]),
                "tokens": int(routed.received[at]),
                "expected": round(float(expected[at]), 3),
            }
            for at in starved
        ],
    }


def _columns(decoder: Decoder, block: int, mixture: str) -> int:
    """Return the most columns of a linear of one expert: with enough tokens for it there are for all."""
    return max(shape[1] for name, shape in decoder.linears(block).items() if expert_of(name, [mixture]))


def _said(top_up: Mapping[str, Any]) -> str:
    before, after = top_up["starved"]["before"], top_up["starved"]["expected"]
    segments = top_up["segments"]
    if not before:
        return "no further segments: no expert is starved"
    if not segments:
        return f"no further segments: no language brings the {before} starved experts any token"
    spread = ", ".join(f"{code} {count}" for code, count in segments.items())
    left = f", {after} of which are expected to stay so" if after else ""
    return f"{sum(segments.values())} further segments: {spread}, for {before} starved experts{left}"
