"""Scores one checkpoint on tasks of lm-evaluation-harness, on the stages: ``mbs evaluate --tasks``."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mbs_ray import __version__
from mbs_ray.cluster.connect import connected
from mbs_ray.cluster.job import Job
from mbs_ray.cluster.layout import Layout, resolve_layout
from mbs_ray.cluster.numerics import resolve_numerics, room_for_actors
from mbs_ray.cluster.offload import AUTO, Offload
from mbs_ray.driver.evaluate import run_alone, scoring_shards
from mbs_ray.driver.progress import Progress
from mbs_ray.driver.token_requests import TokenRequests
from mbs_ray.evaluation.token_scores import RequestScore
from mbs_ray.evaluation.zero_shot import (
    TaskScore,
    harness_version,
    open_tasks,
    require_harness,
    run_tasks,
    task_metrics,
)
from mbs_ray.files import digest, write_json
from mbs_ray.run.journal import Journal
from mbs_ray.run.prepare import Model, read_through
from mbs_ray.text.tokenizer_files import load_tokenizer
from mbs_ray.tracking.mlflow_client import MlflowConnection, default_tracking_uri
from mbs_ray.tracking.tracked_run import evaluation_run

EXPERIMENT = "evaluate"


def evaluate_tasks(
    model: str,
    *,
    revision: str | None,
    tasks: Sequence[str],
    shots: int,
    limit: int | None,
    include_path: Path | None,
    compute_dtype: str,
    stages: int | None,
    replicas: int | None,
    threads: int | None,
    out: Path,
    address: str | None,
    progress: Progress,
    offload: Offload = AUTO,
) -> tuple[Path, list[TaskScore]]:
    """Accuracy of a checkpoint on tasks, by language; also told to MLflow. Answers with the file of the scores.

    ``tasks`` are names of lm-evaluation-harness: tasks, groups or tags. Raises :class:`InputError` before any actor
    starts where the model or a task cannot be used.
    """
    require_harness()
    opened_tasks = open_tasks(tasks, include_path)
    opened = read_through(model, revision, out / "cache", progress.work)
    # As lm-eval loads it: its own maximum length counts.
    tokenizer = load_tokenizer(str(opened.checkpoint.folder))
    connection = MlflowConnection(default_tracking_uri(out), EXPERIMENT, out / "artifacts")
    from mbs_ray.evaluation.staged_lm import StagedLM

    with connected(address, (stages or 1) * (replicas or 1) * (threads or 1)):
        dtype = resolve_numerics(1, threads).compute_dtype(compute_dtype, opened.decoder.stored_dtype)
        settings = {
            "model": model,
            "fingerprint": opened.fingerprint,
            "tasks": ",".join(opened_tasks),
            "shots": shots,
            "limit": limit,
            "compute_dtype": dtype,
            "version": {"mbs_ray": __version__, "lm_eval": harness_version()},
        }
        key = digest(json.dumps(settings, sort_keys=True))
        scorer = Scorer(opened, dtype, stages, replicas, threads, offload, out / "evaluated", progress)
        lm = StagedLM(tokenizer, opened.checkpoint.config, scorer.score)
        scores = run_tasks(lm, opened_tasks, shots, limit)
    file = out / "evaluated" / key / "tasks.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, {**settings, "scores": [asdict(one) for one in scores]})
    track_scores(connection, key, settings, file, scores)
    return file, scores


def track_scores(
    connection: MlflowConnection, key: str, settings: Mapping[str, Any], file: Path, scores: Sequence[TaskScore]
) -> None:
    """Tell MLflow of scores, through a journal beside their ``file``; again told, only what has changed."""
    journal = Journal(file.with_name("journal.jsonl"))
    # The same command may be given again, and a task file of the user's be another by then.
    journal.append_changed(task_metrics(scores))
    name = f"{_shown_name(settings['model'])}, {settings['shots']} shots"
    tags = {"model": _shown_name(settings["model"]), "mbs.folder": str(file.parent)}
    tracked = evaluation_run(connection, key, name, settings, tags, journal)
    tracked.artifact(file)
    tracked.finish("FINISHED")


def _shown_name(model: str) -> str:
    """The name of a model's folder; that of the run for the checkpoint of one."""
    path = Path(model)
    return path.parent.name if path.name == "checkpoint" else path.name


@dataclass(frozen=True)
class Scorer:
    """How sequences are scored: each call starts stages for them."""

    model: Model
    compute_dtype: str
    stages: int | None
    replicas: int | None
    threads: int | None
    offload: Offload
    folder: Path
    progress: Progress

    def score(self, sequences: Sequence[Sequence[int]]) -> list[RequestScore]:
        """What is known of the tokens 2…n of each sequence of token ids."""
        if not sequences:
            return []
        self.folder.mkdir(parents=True, exist_ok=True)
        # On the folder that all nodes share; a hundred small files that nobody asks for afterwards.
        with TemporaryDirectory(prefix="requests-", dir=self.folder, ignore_cleanup_errors=True) as temporary:
            directory = Path(temporary)
            requests = TokenRequests(directory / "segments", sequences)
            self.progress.say(f"{len(sequences):,} requests, {requests.tokens:,} tokens")
            job, layout, threads = self._job(requests, directory)
            run_alone(job, layout, threads, self.offload, self.progress)
            return requests.scores(directory)

    def _job(self, requests: TokenRequests, directory: Path) -> tuple[Job, Layout, int]:
        files = requests.write()
        layout = resolve_layout(
            self.stages,
            self.replicas,
            actors=room_for_actors(self.threads),
            runs=1,
            blocks=self.model.decoder.blocks,
            microbatches=sum(-(-len(file.languages) // (file.microbatch or 1)) for file in files),
        )
        job = Job(
            key=self.model.name,
            model=self.model.checkpoint.folder,
            compute_dtype=self.compute_dtype,
            microbatch=1,
            method=None,
            calibration=None,
            evaluation=files,
            directory=directory,
            blocks=scoring_shards(self.model.decoder, requests.tokens, layout.stages),
            replicas=layout.replicas,
        )
        return job, layout, resolve_numerics(layout.actors, self.threads).threads
