"""Scores a checkpoint on tasks of lm-evaluation-harness, on the stages: ``mbs evaluate --tasks``."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mbs_ray import __version__
from mbs_ray.driver.checkpoint_scorer import CheckpointScorer
from mbs_ray.driver.token_requests import TokenRequests
from mbs_ray.evaluation.task_items import ITEMS, TASKS, write_items
from mbs_ray.evaluation.token_scores import RequestScore
from mbs_ray.evaluation.zero_shot import (
    TaskScore,
    harness_version,
    open_tasks,
    require_harness,
    run_tasks,
    task_language,
    task_metrics,
)
from mbs_ray.files import digest, write_json
from mbs_ray.run.journal import Journal, check_name
from mbs_ray.tracking.mlflow_client import MlflowConnection, default_tracking_uri
from mbs_ray.tracking.shown_names import shown_model
from mbs_ray.tracking.tracked_run import evaluation_run

EXPERIMENT = "evaluate"
#: The file of the scores, and the scores.
TaskResult = tuple[Path, list[TaskScore]]


@dataclass(frozen=True)
class TaskQuestion:
    """Tasks to score: ``names`` of lm-evaluation-harness, which are tasks, groups or tags.

    ``shots`` examples precede each question; ``limit``: at most so many questions of a task; ``include_path`` holds
    task files of the user.
    """

    names: Sequence[str]
    shots: int = 0
    limit: int | None = None
    include_path: Path | None = None


@dataclass(frozen=True)
class OpenedTasks:
    """Tasks that the harness has opened, and the MLflow experiment that their scores are logged to."""

    question: TaskQuestion
    tasks: Mapping[str, Any]
    connection: MlflowConnection


def open_question(question: TaskQuestion, out: Path) -> OpenedTasks:
    """Open tasks, and MLflow. Raises :class:`InputError` where a task cannot be used or MLflow cannot be reached."""
    require_harness()
    tasks = open_tasks(question.names, question.include_path)
    for name in tasks:
        check_name("acc/{}/{}".format(*task_language(name)))
    connection = MlflowConnection(default_tracking_uri(out), EXPERIMENT, out / "artifacts")
    return OpenedTasks(question, tasks, connection)


def score_tasks(scorer: CheckpointScorer, opened: OpenedTasks, tokenizer: Any) -> TaskResult:
    """Measure the accuracy of a checkpoint on tasks, by language; write it to a file and log it to MLflow."""
    from mbs_ray.evaluation.staged_lm import StagedLM

    question = opened.question
    settings = {
        "model": scorer.name,
        "fingerprint": scorer.model.fingerprint,
        "tasks": ",".join(opened.tasks),
        "shots": question.shots,
        "limit": question.limit,
        "compute_dtype": scorer.compute_dtype,
        "version": {"mbs_ray": __version__, "lm_eval": harness_version()},
    }
    key = digest(json.dumps(settings, sort_keys=True))
    lm = StagedLM(tokenizer, scorer.model.checkpoint.config, lambda sequences: score_requests(scorer, sequences))
    scores, items = run_tasks(lm, opened.tasks, question.shots, question.limit)
    file = scorer.folder / key / TASKS
    write_items(file.with_name(ITEMS), items)
    write_json(file, {**settings, "scores": [asdict(one) for one in scores]})
    track_scores(opened.connection, key, settings, file, scores)
    return file, scores


def score_requests(scorer: CheckpointScorer, sequences: Sequence[Sequence[int]]) -> list[RequestScore]:
    """Score the tokens 2…n of each sequence of token ids, in the order of the sequences."""
    if not sequences:
        return []
    scorer.folder.mkdir(parents=True, exist_ok=True)
    # On the folder that all nodes share; a hundred small files that nobody asks for afterwards.
    with TemporaryDirectory(prefix="requests-", dir=scorer.folder, ignore_cleanup_errors=True) as temporary:
        directory = Path(temporary)
        requests = TokenRequests(directory / "segments", sequences)
        scorer.progress.say(f"{len(sequences):,} requests, {requests.tokens:,} tokens")
        files = requests.write(scorer.driver.resources.numerics.device, scorer.model.checkpoint.hidden_size)
        job = scorer.job(files, tokens=requests.tokens, microbatch=1, directory=directory)
        scorer.driver.work_alone(job)
        return requests.scores(directory)


def track_scores(
    connection: MlflowConnection, key: str, settings: Mapping[str, Any], file: Path, scores: Sequence[TaskScore]
) -> None:
    """Log scores to MLflow through a journal beside their ``file``; when repeated, only what has changed."""
    journal = Journal(file.with_name("journal.jsonl"))
    # The same command may be given again, and a task file of the user's be another by then.
    journal.append_changed(task_metrics(scores))
    model = shown_model(settings["model"])
    name = f"{model}, {settings['shots']} shots"
    tags = {"model": model, "mbs.folder": str(file.parent)}
    tracked = evaluation_run(connection, key, name, settings, tags, journal)
    for one in (file, file.with_name(ITEMS)):
        tracked.artifact(one)
    tracked.finish("FINISHED")
