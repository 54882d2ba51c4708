"""Conducts the runs of a sweep: which are to be done, what follows when one ends, what is left at the end."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from mbs_ray.cluster.job import Job
from mbs_ray.compression.block_report import expert_metrics, read_block_reports
from mbs_ray.driver.conclusion import SweepResult, warned_if_unwritten, write_tables
from mbs_ray.driver.progress import Progress
from mbs_ray.driver.run_card import Scores, card_facts
from mbs_ray.driver.stage_driver import StageDriver
from mbs_ray.driver.sweep_jobs import SweepJobs
from mbs_ray.errors import InputError, LeaseLostError
from mbs_ray.evaluation.metric_names import MetricNames
from mbs_ray.evaluation.perplexity import evaluation_metrics, language_scores
from mbs_ray.report.page import write_report_page
from mbs_ray.run.directory import METRICS
from mbs_ray.run.finish import assemble_run
from mbs_ray.run.prepare import PreparedRun
from mbs_ray.run.signature import finished_result, forward_fields, signature
from mbs_ray.tracking.sweep_tracking import Ending, SweepTracking

SYNC_SECONDS = 10.0


class Conductor:
    """One sweep under way, with the Ray connection open."""

    def __init__(
        self,
        jobs: SweepJobs,
        driver: StageDriver,
        tracked: SweepTracking,
        progress: Progress,
    ) -> None:
        self._runs = {run.label: run for run in jobs.runs}
        self._jobs, self._driver, self._tracked, self._progress = jobs, driver, tracked, progress
        self._synced = time.monotonic()
        self._scored: list[str] = []
        #: Folders of dense evaluations that are still to come: their files are not asked for before.
        self._awaited: set[Path] = set()
        self._failed: dict[str, str] = {}
        self._metrics: dict[str, Mapping[str, float]] = {}

    def run(self, uri: str) -> SweepResult:
        """Take the open runs through the stages, then write tables, timeline and report page; ``uri`` is MLflow's."""
        status: Ending | None = "FAILED"
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
            write_tables(finished, self._metrics, self._jobs, self._tracked.parent, result, say)
            self._driver.spans.write_timeline(self._jobs.folders, self._tracked.parent, result, say)
            self._write_page(result)
            with warned_if_unwritten("the means over seeds", say, f"mbs track {self._jobs.folders.sweep}"):
                self._tracked.aggregate()
            status = "FAILED" if self._failed else "FINISHED"
            return result
        except (KeyboardInterrupt, SystemExit):
            # Ray, once connected, turns SIGTERM into the second.
            status = "KILLED"
            raise
        except LeaseLostError:
            status = None  # its runs in MLflow are another command's now
            raise
        finally:
            if status is not None and not self._tracked.close(status):
                self._progress.say(f"MLflow at {uri} has not taken everything yet; the same command tries again")

    def _write_page(self, result: SweepResult) -> None:
        """Write the report page of all runs, and log it to the parent run."""
        folder = self._jobs.folders.sweep
        with warned_if_unwritten("the report", self._progress.say, f"mbs report {folder}"):
            page = write_report_page(folder)
            self._tracked.parent.artifact(page)
            result.files.append(page)

    def _open_jobs(self) -> list[Job]:
        """Dense evaluations first, then the runs that are not finished."""
        open_runs = [run for run in self._runs.values() if finished_result(self._jobs.folders, run) is None]
        dense = {job.directory: job for run in open_runs for job in self._jobs.dense_jobs(run)}
        self._awaited.update(dense)
        todo = {job.key: job for job in (*_told_apart(dense.values()), *self._jobs.collecting_jobs())}
        for label, run in self._runs.items():
            if self._alone(label, partial(self._open_run, run)) and label not in self._metrics:
                todo[label] = self._jobs.run_job(run)
        return list(todo.values())

    def _open_run(self, run: PreparedRun) -> None:
        """Tell MLflow of a run that is to be worked on, or was finished without MLflow having all of it."""
        finished = finished_result(self._jobs.folders, run)
        if finished is None or not finished.get("tracked"):
            self._tracked.begin(run, *self._signed(run, finished is not None))
        if finished is not None and not finished.get("tracked"):
            self._keep_result(run, finished["metrics"], finished["dense"])
        elif finished is not None:
            self._metrics[run.label] = finished["metrics"]

    def _signed(self, run: PreparedRun, finished: bool) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """Return the signature and the resolved fields: a finished run's own, which may be of another version."""
        directory, resources = self._jobs.folders.run(run.label), self._jobs.resources
        if finished and (stored := directory.stored_signature()) and (facts := directory.facts()):
            return stored, facts.resolved
        fields = forward_fields(run, resources.numerics)
        return signature(run, resources.numerics, resources.layout.replicas), fields

    def _ended(self, job: Job, error: Exception | None) -> Iterable[Job]:
        """Finish the scored runs whose dense scores, with which they are compared, exist by now; no job follows."""
        if error is not None:
            self._fail(job.key, error)
        elif job.key in self._runs:
            self._scored.append(job.key)
        else:
            self._awaited.discard(job.directory)
        self._scored = [label for label in self._scored if not self._finish_if_comparable(self._runs[label])]
        return ()

    def _sync_now_and_then(self) -> None:
        if time.monotonic() - self._synced > SYNC_SECONDS:
            self._tracked.sync()
            self._synced = time.monotonic()

    def _finish_if_comparable(self, run: PreparedRun) -> bool:
        """Finish a run the stages are through with, once the dense scores it is compared with are there."""
        if any(self._jobs.dense_directory(run, name) in self._awaited for name in run.evaluation):
            return False
        self._alone(run.label, partial(self._finish, run))
        return True

    def _alone(self, label: str, work: Callable[[], None]) -> bool:
        """Do what belongs to one run. Whatever it raises, also for a full disk, is that run's: the others go on."""
        try:
            work()
        except Exception as error:
            self._fail(label, error)
            return False
        return True

    def _finish(self, run: PreparedRun) -> None:
        folders = self._jobs.folders
        metrics: dict[str, float] = {}
        scores: dict[str, Scores] = {}
        for name, names in MetricNames.by_set(run.evaluation).items():
            compressed = language_scores(self._jobs.scores(run, name))
            dense = language_scores(self._jobs.dense_scores(run, name))
            metrics |= evaluation_metrics(names, compressed, dense, run.spec.evaluation[name].parallel, run.groups)
            scores[name] = dense, compressed
        metrics |= expert_metrics(read_block_reports(folders.run(run.label).blocks))
        card = card_facts(run, scores, metrics)
        folders.run(run.label).keep_card(card)
        if run.spec.keep == "checkpoint":
            assemble_run(folders, run, card)
        perplexities = {
            name: {language: score.perplexity for language, score in dense.items()}
            for name, (dense, _) in scores.items()
        }
        self._keep_result(run, metrics, perplexities)

    def _keep_result(
        self, run: PreparedRun, metrics: Mapping[str, float], dense: Mapping[str, Mapping[str, float]]
    ) -> None:
        """Write the result, and whether MLflow has taken all of it: if not, the next command tries again.

        ``dense``: evaluation set → language → perplexity of the dense model.
        """
        directory = self._jobs.folders.run(run.label)
        evaluation = {name: text.fingerprint for name, text in run.evaluation.items()}
        keep = "checkpoint" if directory.checkpoint.is_dir() else run.spec.keep
        result = {"evaluation": evaluation, "metrics": metrics, "dense": dense, "keep": keep, "tracked": False}
        directory.finish(result)
        if keep == METRICS:
            directory.drop_weights()
        directory.finish({**result, "tracked": self._tracked.finish(run.label, metrics)})
        self._metrics[run.label] = metrics

    def _fail(self, key: str, error: Exception) -> None:
        reason = " ".join(str(error).split()) or type(error).__name__
        if not isinstance(error, InputError | OSError | RuntimeError):
            reason = f"{type(error).__name__}: {reason}"
        self._failed[key] = reason
        self._progress.say(f"{key} failed: {reason}")
        if key in self._runs:
            self._tracked.fail(key, reason)


def _told_apart(dense: Iterable[Job]) -> Iterator[Job]:
    """Yield the dense evaluations; where several are of one name, as of texts in a grid, with the name of a folder."""
    known = list(dense)
    names = Counter(job.key for job in known)
    for job in known:
        yield replace(job, key=f"{job.key}-{job.directory.name[:6]}") if names[job.key] > 1 else job
