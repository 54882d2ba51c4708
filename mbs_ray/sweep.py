"""Conducts a sweep: calibration → stages → checkpoint → evaluation → tracking."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mbs_ray.calibration.overlap import refuse_overlap
from mbs_ray.calibration.segment_file import SegmentSet
from mbs_ray.calibration.segments import SegmentRequest, draw_apart, draw_segments
from mbs_ray.cluster.connect import connected
from mbs_ray.cluster.job import Job
from mbs_ray.cluster.layout import resolve_layout
from mbs_ray.cluster.offload import Offload
from mbs_ray.conclusion import SweepResult, conclude, distinct_allocations, written_or_said
from mbs_ray.evaluation.perplexity import evaluation_metrics, language_scores
from mbs_ray.interrupt import interrupted_by_sigterm
from mbs_ray.model.block_files import block_file, write_outside
from mbs_ray.model.card import DENSE_FORMAT, model_card
from mbs_ray.model.export import assemble
from mbs_ray.numerics import resolve_numerics, room_for_actors
from mbs_ray.places import Places
from mbs_ray.plan.sweep_plan import planned
from mbs_ray.prepare import PreparedRun, prepare_runs
from mbs_ray.progress import Progress
from mbs_ray.report_page import write_report
from mbs_ray.run_card import Scores, card_facts
from mbs_ray.run_directory import METRICS
from mbs_ray.specs import SweepSpec
from mbs_ray.sweep_adaptive import find_weights
from mbs_ray.sweep_driver import Driver
from mbs_ray.sweep_jobs import SweepJobs
from mbs_ray.sweep_statistics import Pool, pools
from mbs_ray.sweep_tracking import Status, SweepTracking
from mbs_ray.tracking import Tracking, default_tracking_uri

SYNC_SECONDS = 10.0


def conduct(sweep: SweepSpec, out: Path, address: str | None, progress: Progress, force: bool = False) -> SweepResult:
    """Run a sweep, or go on with it: what is finished is kept, what is begun is continued.

    Raises :class:`InputError` before any actor starts where something in the sweep cannot work, or does not fit by
    its plan and ``force`` is not given.
    """
    with interrupted_by_sigterm():
        return _conduct(sweep, out, address, progress, force)


def _conduct(sweep: SweepSpec, out: Path, address: str | None, progress: Progress, force: bool) -> SweepResult:
    places = Places(out.resolve(), sweep.name)
    offload = Offload(sweep.offload, sweep.nvme_path)
    specs = sweep.runs()
    runs = prepare_runs(specs, sweep.labels(specs), sweep.columns(specs), places.cache, progress.work)
    # Those of adaptive runs are told once they are found.
    for run in distinct_allocations([run for run in runs if run.adaptive is None]):
        progress.allocation(run.spec.sampling.label, run.allocation, run.shares)
    uri = default_tracking_uri(places.out)
    told = any(places.run(run.label).told() is not None for run in runs)
    tracking = Tracking(uri, sweep.name, places.artifacts, patient=told)
    threads = sweep.threads if sweep.threads != "auto" else _stored("threads", places, runs)
    replicas = sweep.layout.replicas if sweep.layout.replicas != "auto" else _stored("replicas", places, runs)
    stages = sweep.layout.stages if sweep.layout.stages != "auto" else None
    with connected(address, (stages or 1) * (replicas or 1) * (threads or 1)):
        layout = resolve_layout(
            stages,
            replicas,
            actors=room_for_actors(threads),
            runs=len(runs),
            blocks=min(run.model.decoder.blocks for run in runs),
            microbatches=min(run.shared_microbatches for run in runs),
        )
        segments: dict[str, SegmentSet] = {}
        jobs = SweepJobs(places, resolve_numerics(layout.actors, threads), layout, segments, pools(runs))
        progress.say(f"layout: {layout}, {jobs.numerics.threads} thread(s) each, on {jobs.numerics.device}")
        for run in runs:
            if run.adaptive is None:  # whose weights are not known yet
                places.run(run.label).refuse_changed(jobs.signature(run))
            places.run(run.label).refuse_other_first_set(next(iter(run.evaluation), ""))
        offload = planned(offload, runs, jobs, progress.say, force)
        jobs.refuse_full_disk()
        segments.update(_draw(runs, jobs.pools, places, progress))
        driver = Driver(jobs, offload, progress)
        runs = find_weights(runs, driver, progress)
        driver.jobs = replace(driver.jobs, pools=pools(runs))
        for run in runs:
            places.run(run.label).refuse_changed(driver.jobs.signature(run))
            places.run(run.label).claim(driver.jobs.signature(run))
        tracked = SweepTracking(tracking, places, {"layout": vars(layout), "runs": len(runs)})
        return _Conductor(runs, driver, tracked, progress).conduct(uri)


def _stored(field: str, places: Places, runs: Sequence[PreparedRun]) -> int | None:
    """What ``auto`` was resolved to when the sweep was begun."""
    signatures = (places.run(run.label).stored_signature() for run in runs)
    return next((int(signature[field]) for signature in signatures if signature is not None), None)


def _draw(
    runs: Sequence[PreparedRun], pools: Sequence[Pool], places: Places, progress: Progress
) -> dict[str, SegmentSet]:
    """Every distinct set of segments once, by the fingerprint of its request; of a pool one per language."""
    texts: dict[str, tuple[str, SegmentRequest]] = {}
    for run in runs:
        for name, text in run.evaluation.items():
            texts.setdefault(text.fingerprint, (f"evaluation text {name}", text))
        if run.weights is None:
            what = f"calibration text {run.spec.sampling.label}, seed {run.spec.seed}"
            texts.setdefault(run.calibration.fingerprint, (what, run.calibration))
    drawn: dict[str, SegmentSet] = {}
    for pool in pools:
        progress.work(f"drawing text of {len(pool.languages)} languages for {pool.label}", 0, 1)
        apart = draw_apart(pool.request, places.segments)
        drawn |= {pool.languages[language].fingerprint: one for language, one in apart.items()}
    for done, (key, (what, text)) in enumerate(texts.items()):
        progress.work(f"drawing {what}", done, len(texts))
        drawn[key] = draw_segments(text, places.segments)
    progress.work("drawing text", len(texts), len(texts))
    _refuse_overlaps(runs, pools, drawn)
    return drawn


def _refuse_overlaps(runs: Sequence[PreparedRun], pools: Sequence[Pool], drawn: Mapping[str, SegmentSet]) -> None:
    """Every evaluation set against every calibration set it is scored after."""
    calibrations = [(run, [run.calibration]) for run in runs if run.weights is None]
    calibrations += [(run, [*pool.languages.values()]) for pool in pools for run in pool.runs]
    pairs = {
        (name, text.fingerprint, one.fingerprint)
        for run, texts in calibrations
        for one in texts
        for name, text in run.evaluation.items()
    }
    for name, evaluation, calibration in sorted(pairs):
        refuse_overlap(name, drawn[evaluation], drawn[calibration])


class _Conductor:
    """One sweep under way, with the Ray connection open."""

    def __init__(
        self,
        runs: Sequence[PreparedRun],
        driver: Driver,
        tracked: SweepTracking,
        progress: Progress,
    ) -> None:
        self._runs = {run.label: run for run in runs}
        self._jobs, self._driver, self._tracked, self._progress = driver.jobs, driver, tracked, progress
        self._synced = time.monotonic()
        self._scored: list[str] = []
        self._failed: dict[str, str] = {}
        self._metrics: dict[str, Mapping[str, float]] = {}

    def conduct(self, uri: str) -> SweepResult:
        status: Status = "FAILED"
        try:
            todo = self._open_jobs()
            if todo:
                self._driver.work(todo, self._ended, self._sync_now_and_then)
                for label in self._scored:
                    self._fail(label, RuntimeError("the dense model could not be evaluated"))
            else:
                self._progress.say("all runs are finished; nothing to compute")
            result = SweepResult(failed=self._failed, tracking_uri=uri)
            finished = [run for label, run in self._runs.items() if label in self._metrics]
            say = self._progress.say
            conclude(finished, self._metrics, self._jobs, self._tracked.parent, result, say)
            self._driver.spans.conclude(self._jobs.places, self._tracked.parent, result, say)
            self._write_page(result)
            status = "FAILED" if self._failed else "FINISHED"
            return result
        except (KeyboardInterrupt, SystemExit):
            # Ray, once connected, turns SIGTERM into the second.
            status = "KILLED"
            raise
        finally:
            if not self._tracked.close(status):
                self._progress.say(f"MLflow at {uri} has not taken everything yet; the same command tries again")

    def _write_page(self, result: SweepResult) -> None:
        """The report of all runs."""
        folder = self._jobs.places.sweep
        with written_or_said("the report", self._progress.say, f"mbs report {folder}"):
            page = write_report(folder)
            self._tracked.parent.artifact(page)
            result.files.append(page)

    def _open_jobs(self) -> list[Job]:
        """Dense evaluations first, then the runs that are not finished."""
        todo: dict[str, Job] = {}
        for run in self._runs.values():
            for job in self._jobs.dense_jobs(run):
                todo.setdefault(job.key, job)
        todo |= {job.key: job for job in self._jobs.statistics_jobs()}
        for label, run in self._runs.items():
            finished = self._jobs.finished_result(run)
            if finished is None:
                todo[label] = self._jobs.run_job(run)
            if finished is None or not finished.get("tracked"):
                self._tracked.begin(run, self._jobs.signature(run), self._jobs.bits(run))
            if finished is not None:
                self._metrics[label] = finished["metrics"]
                if not finished.get("tracked"):
                    self._keep_result(run, finished["metrics"])
        return list(todo.values())

    def _ended(self, key: str, error: Exception | None) -> Iterable[Job]:
        """A run is finished once the dense scores it is compared with are there; nothing follows."""
        if error is not None:
            self._fail(key, error)
        elif key in self._runs:
            self._scored.append(key)
        self._scored = [label for label in self._scored if not self._finish_if_comparable(self._runs[label])]
        return ()

    def _sync_now_and_then(self) -> None:
        if time.monotonic() - self._synced > SYNC_SECONDS:
            self._tracked.sync()
            self._synced = time.monotonic()

    def _finish_if_comparable(self, run: PreparedRun) -> bool:
        """Finish a run the stages are through with, once the dense scores it is compared with are there."""
        if not all(self._jobs.dense_scores(run, name).is_file() for name in run.evaluation):
            return False
        try:
            self._finish(run)
        except (OSError, ValueError) as error:
            self._fail(run.label, error)
        return True

    def _finish(self, run: PreparedRun) -> None:
        places, model = self._jobs.places, run.model
        directory = places.run(run.label)
        metrics: dict[str, float] = {}
        scores: dict[str, Scores] = {}
        for position, name in enumerate(run.evaluation):
            compressed = language_scores(self._jobs.scores(run, name))
            dense = language_scores(self._jobs.dense_scores(run, name))
            metrics |= evaluation_metrics(name if position else None, compressed, dense)
            scores[name] = dense, compressed
        card = card_facts(run, scores, metrics)
        directory.keep_card(card)
        if run.spec.keep == "checkpoint":
            outside = write_outside(model.checkpoint, model.decoder, places.outside(model.fingerprint))
            shards = [outside, *(directory.blocks / block_file(index) for index in range(model.decoder.blocks))]
            assemble(model.checkpoint, shards, directory.checkpoint, model_card(card, DENSE_FORMAT))
        self._keep_result(run, metrics)
        self._metrics[run.label] = metrics

    def _keep_result(self, run: PreparedRun, metrics: Mapping[str, float]) -> None:
        """Write the result, and whether MLflow has taken all of it: if not, the next command tries again."""
        directory = self._jobs.places.run(run.label)
        evaluation = {name: text.fingerprint for name, text in run.evaluation.items()}
        keep = "checkpoint" if directory.checkpoint.is_dir() else run.spec.keep
        result = {"evaluation": evaluation, "metrics": metrics, "keep": keep, "tracked": False}
        directory.finish(result)
        if keep == METRICS:
            directory.drop_weights()
        directory.finish({**result, "tracked": self._tracked.finish(run.label, metrics)})

    def _fail(self, key: str, error: Exception) -> None:
        reason = " ".join(str(error).split()) or type(error).__name__
        self._failed[key] = reason
        self._progress.say(f"{key} failed: {reason}")
        if key in self._runs:
            self._tracked.fail(key, reason)
