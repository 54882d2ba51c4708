"""Scores a checkpoint on tasks of lm-evaluation-harness, on the stages: ``mbs evaluate --tasks``."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from mbs_ray import __version__
from mbs_ray.cluster.cluster_options import ClusterOptions
from mbs_ray.cluster.resources import room_for_actors
from mbs_ray.driver.checkpoint_scorer import CheckpointScorer
from mbs_ray.driver.token_requests import TokenRequests
from mbs_ray.evaluation.paired_tasks import HOLM, PairedAnswers
from mbs_ray.evaluation.scored_tasks import scored_tasks
from mbs_ray.evaluation.task_items import ITEMS, TASKS, write_items
from mbs_ray.evaluation.token_scores import RequestScore
from mbs_ray.evaluation.zero_shot import (
    TaskScore,
    harness_version,
    open_tasks,
    questions_digest,
    require_harness,
    run_tasks,
    task_language,
)
from mbs_ray.files import digest, write_json
from mbs_ray.model.manifest import checkpoint_digest
from mbs_ray.run.journal import check_name
from mbs_ray.tracking.mlflow_client import MlflowConnection, default_tracking_uri
from mbs_ray.tracking.tracked_tasks import compared_with_dense, run_of_checkpoint, track_scores

EXPERIMENT = "evaluate"


class TaskResult(NamedTuple):
    """The file of a checkpoint's scores, the scores, and its answers compared with those of the dense model.

    ``paired`` is None for a checkpoint that is no run's, or whose dense model was not asked the same.
    """

    file: Path
    scores: tuple[TaskScore, ...]
    paired: Sequence[PairedAnswers] | None


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
    """Tasks that the harness has opened, and the MLflow experiment that their scores are logged to.

    ``questions`` is a digest of all that they ask.
    """

    question: TaskQuestion
    tasks: Mapping[str, Any]
    questions: str
    connection: MlflowConnection


def open_question(question: TaskQuestion, out: Path) -> OpenedTasks:
    """Open tasks, and MLflow. Raises :class:`InputError` where a task cannot be used or MLflow cannot be reached."""
    require_harness()
    tasks = open_tasks(question.names, question.include_path)
    for name in tasks:
        task, language, _ = task_language(name)
        check_name(f"{HOLM}/{task}/{language}")
    questions = questions_digest(tasks, question.shots, question.limit)
    connection = MlflowConnection(default_tracking_uri(out), EXPERIMENT, out / "artifacts")
    return OpenedTasks(question, tasks, questions, connection)


def shared_requests(cluster: ClusterOptions) -> int:
    """Return the microbatches to count on for replicas; needs a connected Ray.

    How many requests tasks make is not known yet; a replica without any of them does nothing.
    """
    return max(cluster.replicas or 1, room_for_actors(cluster.threads, cluster.device))


def score_tasks(scorer: CheckpointScorer, opened: OpenedTasks, tokenizer: Any) -> TaskResult:
    """Measure the accuracy of a checkpoint on tasks, by language; write it to a file and log it to MLflow."""
    from mbs_ray.evaluation.staged_lm import StagedLM

    question, settings = opened.question, _settings(scorer, opened)
    lm = StagedLM(tokenizer, scorer.model.checkpoint.config, lambda sequences: score_requests(scorer, sequences))
    scores, items = run_tasks(lm, opened.tasks, question.shots, question.limit)
    folder = scorer.folder / _key(settings)
    # Answers to other questions must not lie beside the scores of before if this is killed in between.
    (folder / TASKS).unlink(missing_ok=True)
    write_items(folder / ITEMS, items)
    beside = {"questions": opened.questions, "checkpoint_digest": checkpoint_digest(scorer.model.checkpoint.folder)}
    write_json(folder / TASKS, {**settings, **beside, "scores": [asdict(one) for one in scores]})
    return _tracked(scorer, opened, settings, folder, scores)


def scored_before(scorer: CheckpointScorer, opened: OpenedTasks) -> TaskResult | None:
    """Return the scores that an earlier command left, and log what MLflow lacks of them; None where there are none.

    Those of a checkpoint that has been moved since count as well: its present place is written to their file.
    """
    settings = _settings(scorer, opened)
    for one in reversed(scored_tasks(scorer.folder)):
        told = {field: one.settings.get(field) for field in settings}
        moved = _is_gone(one.settings["model"])
        if moved:
            told["model"] = scorer.name
        if told != settings or one.settings["questions"] != opened.questions:
            continue
        if moved:
            content = {**one.settings, "model": scorer.name, "scores": [asdict(score) for score in one.scores]}
            write_json(one.folder / TASKS, content)
        return _tracked(scorer, opened, settings, one.folder, one.scores)
    return None


def _is_gone(model: str) -> bool:
    """Check whether a checkpoint that was scored has left its folder; one of the hub has none."""
    return Path(model).is_absolute() and not Path(model).exists()


def _settings(scorer: CheckpointScorer, opened: OpenedTasks) -> dict[str, Any]:
    return {
        "model": scorer.name,
        "fingerprint": scorer.model.fingerprint,
        "tasks": ",".join(opened.tasks),
        "shots": opened.question.shots,
        "limit": opened.question.limit,
        "compute_dtype": scorer.compute_dtype,
        "version": {"mbs_ray": __version__, "lm_eval": harness_version()},
    }


def _key(settings: Mapping[str, Any]) -> str:
    return digest(json.dumps(settings, sort_keys=True))


def _tracked(
    scorer: CheckpointScorer,
    opened: OpenedTasks,
    settings: Mapping[str, Any],
    folder: Path,
    scores: Sequence[TaskScore],
) -> TaskResult:
    run = run_of_checkpoint(Path(scorer.name))
    paired = None if run is None else compared_with_dense(folder, run)
    track_scores(opened.connection, settings, folder, scores, run, paired)
    return TaskResult(folder / TASKS, tuple(scores), paired)


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
        files = requests.write(scorer.driver.resources.numerics.device, scorer.model.decoder)
        job = scorer.job(files, tokens=requests.tokens, microbatch=1, directory=directory)
        scorer.driver.work_alone(job)
        return requests.scores(directory)
