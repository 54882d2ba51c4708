"""Conducts a sweep: calibration → stages → checkpoint → evaluation → tracking."""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import ray
import torch

from mbs_ray import __version__
from mbs_ray.calibration.segment_file import SegmentSet
from mbs_ray.calibration.segments import SegmentRequest, draw_segments
from mbs_ray.cluster.connect import connected
from mbs_ray.cluster.job import Job, SegmentFile, segment_file
from mbs_ray.cluster.pipeline import Pipeline
from mbs_ray.cluster.plan import shard_blocks
from mbs_ray.evaluation.perplexity import LanguageScore, evaluation_metrics, language_scores
from mbs_ray.evaluation.report import increase_table, mean_over, to_markdown
from mbs_ray.journal import Journal
from mbs_ray.methods import method_spec
from mbs_ray.model.export import assemble, write_outside
from mbs_ray.numerics import Numerics, resolve_numerics
from mbs_ray.plots import allocation_bars, increase_heatmap, save_figure
from mbs_ray.prepare import Model, PreparedRun, prepare_runs
from mbs_ray.progress import Progress
from mbs_ray.report import read_reports
from mbs_ray.run_directory import RunDirectory, write_json
from mbs_ray.specs import SweepSpec
from mbs_ray.tracking import TrackedRun, Tracking, default_tracking_uri

POLL_SECONDS = 0.5
SYNC_SECONDS = 10.0


@dataclass(frozen=True)
class Places:
    """Where a sweep keeps its files, all under the absolute ``--out``."""

    out: Path
    sweep: Path

    def run(self, label: str) -> RunDirectory:
        return RunDirectory(self.sweep / "runs" / label)

    def dense(self, key: str) -> Path:
        return self.out / "dense" / key

    def outside(self, model: Model) -> Path:
        return self.out / "outside" / f"{model.fingerprint[:16]}.safetensors"

    @property
    def segments(self) -> Path:
        return self.out / "segments"

    @property
    def cache(self) -> Path:
        return self.out / "cache"


@dataclass
class SweepResult:
    """What a finished sweep left."""

    tables: dict[str, pd.DataFrame]
    dense: dict[str, dict[str, dict[str, LanguageScore]]]
    failed: dict[str, str]
    figures: list[Path] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    tracking_uri: str = ""


def conduct(sweep: SweepSpec, out: Path, address: str | None, progress: Progress) -> SweepResult:
    """Run a sweep, or go on with it: what is finished is kept, what is begun is continued.

    Raises :class:`InputError` before any actor starts where something in the sweep cannot work.
    """
    out = out.resolve()
    places = Places(out, out / sweep.name)
    specs = sweep.runs()
    labels = sweep.labels(specs)
    groups = sweep.groups(specs)
    runs = prepare_runs(specs, labels, groups, places.cache, progress.work)
    for run in _distinct_allocations(runs):
        progress.allocation(run.spec.sampling.label, run.allocation, run.spec.segments)
    stored_threads = _stored_threads(places, runs)
    threads = sweep.threads if sweep.threads != "auto" else stored_threads
    with connected(address, sweep.stages * (threads or 1)):
        numerics = resolve_numerics(sweep.stages, threads)
        segments = _draw(runs, places, progress)
        return _Conductor(sweep, places, runs, numerics, segments, progress).run()


def _stored_threads(places: Places, runs: Sequence[PreparedRun]) -> int | None:
    """What ``threads: auto`` was resolved to when the sweep was begun."""
    for run in runs:
        signature = places.run(run.label).stored_signature()
        if signature is not None:
            return int(signature["threads"])
    return None


def _distinct_allocations(runs: Sequence[PreparedRun]) -> list[PreparedRun]:
    first: dict[str, PreparedRun] = {}
    for run in runs:
        first.setdefault(json.dumps(run.allocation), run)
    return list(first.values())


def _draw(runs: Sequence[PreparedRun], places: Places, progress: Progress) -> dict[str, SegmentSet]:
    """Every distinct set of segments once, by the fingerprint of its request."""
    texts: dict[str, tuple[str, SegmentRequest]] = {}
    for run in runs:
        for name, text in run.evaluation.items():
            texts.setdefault(text.fingerprint, (f"evaluation text {name}", text))
        what = f"calibration text {run.spec.sampling.label}, seed {run.spec.seed}"
        texts.setdefault(run.calibration.fingerprint, (what, run.calibration))
    drawn = {}
    for done, (key, (what, text)) in enumerate(texts.items()):
        progress.work(f"drawing {what}", done, len(texts))
        drawn[key] = draw_segments(text, places.segments)
    progress.work("drawing text", len(texts), len(texts))
    return drawn


class _Conductor:
    """One sweep under way, with the Ray connection open."""

    def __init__(
        self,
        sweep: SweepSpec,
        places: Places,
        runs: Sequence[PreparedRun],
        numerics: Numerics,
        segments: Mapping[str, SegmentSet],
        progress: Progress,
    ) -> None:
        self._sweep, self._places, self._runs = sweep, places, {run.label: run for run in runs}
        self._numerics, self._segments, self._progress = numerics, segments, progress
        self._failed: dict[str, str] = {}
        self._tracked: dict[str, TrackedRun] = {}
        self._metrics: dict[str, dict[str, float]] = {}

    def run(self) -> SweepResult:
        for run in self._runs.values():
            self._places.run(run.label).claim(self._signature(run))
        uri = default_tracking_uri(self._places.out)
        tracking = Tracking(uri, self._sweep.name, self._places.out / "artifacts")
        parent = tracking.sweep(
            key=_digest(str(self._places.sweep)),
            name=self._sweep.name,
            params={"stages": self._sweep.stages, "runs": len(self._runs), "mbs_ray": __version__},
            tags={"mbs.folder": str(self._places.sweep)},
        )
        status: Any = "FAILED"
        try:
            jobs = self._jobs()
            for run in self._runs.values():
                self._track(tracking, parent, run)
            if jobs:
                self._work(jobs)
            else:
                self._progress.say("all runs are finished; nothing to compute")
            result = self._conclude(parent, uri)
            status = "FAILED" if self._failed else "FINISHED"
            return result
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            for label, tracked in self._tracked.items():
                if label not in self._metrics and label not in self._failed:
                    tracked.finish(status)
            parent.finish(status)

    def _jobs(self) -> dict[str, Job]:
        """Dense evaluations first, then the runs that are not finished."""
        jobs: dict[str, Job] = {}
        for run in self._runs.values():
            for job in self._dense_jobs(run):
                jobs.setdefault(job.key, job)
        for label, run in self._runs.items():
            if not self._is_finished(run):
                jobs[label] = self._job(run)
        return jobs

    def _job(self, run: PreparedRun) -> Job:
        return Job(
            key=run.label,
            model=run.model.checkpoint.folder,
            compute_dtype=self._compute_dtype(run),
            microbatch=run.microbatch,
            method=method_spec(run.spec.method),
            calibration=self._segment_file("calibration", run.calibration),
            evaluation=tuple(self._segment_file(name, one) for name, one in run.evaluation.items()),
            directory=self._places.run(run.label).path,
            blocks=tuple(shard_blocks(run.model.decoder.blocks, self._sweep.stages)),
        )

    def _dense_jobs(self, run: PreparedRun) -> list[Job]:
        jobs = []
        for name, text in run.evaluation.items():
            directory = self._dense_directory(run, text)
            job = Job(
                key=f"dense-{run.model.name}-{name}",
                model=run.model.checkpoint.folder,
                compute_dtype=self._compute_dtype(run),
                microbatch=run.microbatch,
                method=None,
                calibration=None,
                evaluation=(self._segment_file(name, text),),
                directory=directory,
                blocks=tuple(shard_blocks(run.model.decoder.blocks, self._sweep.stages)),
            )
            if not job.scores_file(name).is_file():
                jobs.append(job)
        return jobs

    def _compute_dtype(self, run: PreparedRun) -> str:
        return self._numerics.compute_dtype(run.spec.compute_dtype, run.model.decoder.stored_dtype)

    def _dense_directory(self, run: PreparedRun, text: SegmentRequest) -> Path:
        """One per (model, evaluation set) and what can change its bits; sweeps under one --out share it."""
        return self._places.dense(_digest(run.model.fingerprint, text.fingerprint, json.dumps(self._bits(run))))

    def _bits(self, run: PreparedRun) -> dict[str, Any]:
        return {
            "compute_dtype": self._compute_dtype(run),
            "microbatch": run.microbatch,
            "replicas": 1,
            "device": self._numerics.device,
            "threads": self._numerics.threads,
            "torch": torch.__version__,
        }

    def _signature(self, run: PreparedRun) -> dict[str, Any]:
        return {
            "model": run.model.fingerprint,
            "calibration": run.calibration.fingerprint,
            "method": method_spec(run.spec.method),
            "statistics": "propagated",
            **self._bits(run),
        }

    def _segment_file(self, name: str, text: SegmentRequest) -> SegmentFile:
        segments = self._segments[text.fingerprint]
        return segment_file(name, segments)

    def _is_finished(self, run: PreparedRun) -> bool:
        directory = self._places.run(run.label)
        result = directory.result()
        wanted = {name: text.fingerprint for name, text in run.evaluation.items()}
        return result is not None and result["evaluation"] == wanted

    def _track(self, tracking: Tracking, parent: TrackedRun, run: PreparedRun) -> None:
        directory = self._places.run(run.label)
        signature = self._signature(run)
        self._tracked[run.label] = tracked = tracking.run(
            parent,
            key=_digest(str(directory.path), json.dumps(signature, sort_keys=True)),
            name=run.label,
            params={
                **run.spec.model_dump(mode="json", exclude={"languages", "evaluation"}),
                "languages": ",".join(run.languages),
                "evaluation": ",".join(run.evaluation),
                "fingerprint": {"model": run.model.fingerprint, "calibration": run.calibration.fingerprint},
                "resolved": self._bits(run),
                "version": {"mbs_ray": __version__, "ray": ray.__version__},
            },
            tags={
                "model": run.model.name,
                "method": run.spec.method.label,
                "sampling": run.spec.sampling.label,
                "seed": str(run.spec.seed),
                "mbs.folder": str(directory.path),
            },
            journal=Journal(directory.journal),
        )
        allocation = directory.path / "allocation.json"
        if not allocation.is_file():
            write_json(allocation, run.allocation)
            write_json(directory.path / "spec.json", run.spec.model_dump(mode="json"))
            tracked.artifact(allocation)
            tracked.artifact(directory.path / "spec.json")
        if self._is_finished(run):
            self._metrics[run.label] = RunDirectory(directory.path).result()["metrics"]  # type: ignore[index]
            tracked.finish("FINISHED")

    def _work(self, jobs: Mapping[str, Job]) -> None:
        waiting: list[str] = []
        synced = time.monotonic()
        with (
            Pipeline(self._sweep.stages, self._numerics.threads) as pipeline,
            self._progress.runs(jobs) as show,
        ):
            for job in jobs.values():
                pipeline.submit(job)
            while pipeline.busy:
                for outcome in pipeline.outcomes(POLL_SECONDS):
                    show.ended(outcome.key, outcome.error)
                    if outcome.error is not None:
                        self._fail(outcome.key, outcome.error)
                    elif outcome.key in self._runs:
                        waiting.append(outcome.key)
                waiting = [label for label in waiting if not self._close_if_scored(label)]
                show.stages(pipeline.statuses())
                if time.monotonic() - synced > SYNC_SECONDS:
                    self._sync_blocks()
                    synced = time.monotonic()
        for label in waiting:
            self._fail(label, RuntimeError("the dense model could not be evaluated"))

    def _close_if_scored(self, label: str) -> bool:
        """Finish a run whose stages are through, if the dense scores it is compared with are there."""
        run = self._runs[label]
        if not all(self._dense_file(run, name).is_file() for name in run.evaluation):
            return False
        try:
            self._close(run)
        except (OSError, ValueError) as error:
            self._fail(label, error)
        return True

    def _dense_file(self, run: PreparedRun, name: str) -> Path:
        return self._dense_directory(run, run.evaluation[name]) / "evaluation" / f"{name}.parquet"

    def _close(self, run: PreparedRun) -> None:
        directory = self._places.run(run.label)
        outside = write_outside(run.model.checkpoint, run.model.decoder, self._places.outside(run.model))
        assemble(run.model.checkpoint, directory.blocks, outside, directory.checkpoint)
        metrics: dict[str, float] = {}
        for position, name in enumerate(run.evaluation):
            scores = language_scores(directory.path / "evaluation" / f"{name}.parquet")
            dense = language_scores(self._dense_file(run, name))
            metrics |= evaluation_metrics(name if position else None, scores, dense)
        journal = Journal(directory.journal)
        self._journal_blocks(directory, journal)
        journal.append(metrics)
        evaluation = {name: text.fingerprint for name, text in run.evaluation.items()}
        directory.finish({"evaluation": evaluation, "metrics": metrics})
        self._metrics[run.label] = metrics
        tracked = self._tracked[run.label]
        reports = _reports_table(directory)
        tracked.artifact(reports, "reports")
        tracked.finish("FINISHED")

    def _sync_blocks(self) -> None:
        for label, tracked in self._tracked.items():
            if label in self._metrics or label in self._failed:
                continue
            directory = self._places.run(label)
            if directory.blocks.is_dir():
                self._journal_blocks(directory, Journal(directory.journal))
            tracked.sync()

    def _journal_blocks(self, directory: RunDirectory, journal: Journal) -> None:
        known = {entry.step for entry in journal.entries() if entry.key == "block/seconds"}
        for report in read_reports(directory.blocks):
            if report.block not in known and "propagate" in report.seconds:
                values = {f"block/{name}": value for name, value in report.metrics().items()}
                journal.append(values, step=report.block)

    def _fail(self, key: str, error: Exception) -> None:
        reason = " ".join(str(error).split()) or type(error).__name__
        self._failed[key] = reason
        self._progress.say(f"{key} failed: {reason}")
        if key in self._tracked:
            self._tracked[key].note(f"failed: {reason}")
            self._tracked[key].finish("FAILED")

    def _conclude(self, parent: TrackedRun, uri: str) -> SweepResult:
        result = SweepResult(tables={}, dense={}, failed=self._failed, tracking_uri=uri)
        finished = [run for label, run in self._runs.items() if label in self._metrics]
        for model in dict.fromkeys(run.model.name for run in finished):
            self._conclude_model(model, [run for run in finished if run.model.name == model], parent, result)
        allocations = {run.spec.sampling.label: run.allocation for run in _distinct_allocations(finished)}
        if allocations:
            self._keep_figure(allocation_bars(allocations), "allocations", parent, result)
        return result

    def _conclude_model(self, model: str, runs: Sequence[PreparedRun], parent: TrackedRun, result: SweepResult) -> None:
        result.dense[model] = {name: language_scores(self._dense_file(runs[0], name)) for name in runs[0].evaluation}
        notes = []
        for position, name in enumerate(runs[0].evaluation):
            prefix = "ppl_increase/" if position == 0 else f"ppl_increase_{name}/"
            increases = {
                run.label: {
                    key.removeprefix(prefix): value
                    for key, value in self._metrics[run.label].items()
                    if key.startswith(prefix)
                }
                for run in runs
            }
            table = mean_over(increase_table(increases), {run.label: run.group for run in runs})
            title = f"{model}-{name}"
            result.tables[title] = table
            path = self._places.sweep / f"increase-{title}.csv"
            increase_table(increases).to_csv(path, index_label="language")
            result.files.append(path)
            parent.artifact(path)
            figure = increase_heatmap(table, f"Perplexity increase over the dense model: {model}, {name}")
            self._keep_figure(figure, f"increase-{title}", parent, result)
            notes.append(f"Perplexity increase over dense, {model}, {name}\n\n{to_markdown(table)}")
        if notes:
            parent.note("\n".join(notes))

    def _keep_figure(self, figure: Any, name: str, parent: TrackedRun, result: SweepResult) -> None:
        path = save_figure(figure, self._places.sweep / "figures" / f"{name}.png")
        parent.artifact(path, "figures")
        result.figures.append(path)


def _reports_table(directory: RunDirectory) -> Path:
    """Block reports as one parquet file, a row per linear."""
    rows = [
        {"block": report.block, **vars(linear)}
        for report in read_reports(directory.blocks)
        for linear in report.linears
    ]
    path = directory.path / "linears.parquet"
    pd.DataFrame(rows).to_parquet(path, index=False)
    return path


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
