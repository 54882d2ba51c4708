"""A checkpoint's scores on tasks in MLflow, and those of a run's checkpoint compared with its dense model's."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mbs_ray.evaluation.paired_tasks import PairedAnswers, paired_metrics
from mbs_ray.evaluation.scored_tasks import dense_counterpart, scored_tasks
from mbs_ray.evaluation.task_items import ITEMS, TASKS
from mbs_ray.evaluation.zero_shot import TaskScore, task_metrics
from mbs_ray.report.compare_tasks import FILE, compare_tasks
from mbs_ray.run.directory import RunDirectory
from mbs_ray.run.journal import Journal
from mbs_ray.tracking.mlflow_client import MlflowConnection
from mbs_ray.tracking.shown_names import shown_model
from mbs_ray.tracking.tracked_run import KEY_TAG, TrackedRun, evaluation_run

if TYPE_CHECKING:
    from mlflow import MlflowClient

#: Tag of an evaluation with the id of the sweep's run in MLflow whose checkpoint was scored.
RUN_TAG = "mbs.run_id"


def run_of_checkpoint(checkpoint: Path) -> RunDirectory | None:
    """Return the directory of the run that a checkpoint is of; None where it is no run's."""
    directory = RunDirectory(checkpoint.parent)
    return directory if directory.checkpoint == checkpoint and directory.facts() is not None else None


def compared_with_dense(folder: Path, run: RunDirectory) -> list[PairedAnswers] | None:
    """Compare the answers in ``folder``, as B, with those of the run's dense model to the same questions, as A.

    The rows are written to ``comparison-of-tasks.csv`` there. None where the dense model's answers do not lie beside.
    """
    facts, found = run.facts(), scored_tasks(folder.parent)
    own = next((one for one in found if one.folder == folder), None)
    if own is None or facts is None:
        return None
    dense = dense_counterpart(found, own, facts.fingerprints["model"])
    return None if dense is None else list(compare_tasks(dense.folder, folder).rows)


def track_scores(
    connection: MlflowConnection,
    settings: Mapping[str, Any],
    folder: Path,
    scores: Sequence[TaskScore],
    run: RunDirectory | None = None,
    paired: Sequence[PairedAnswers] | None = None,
) -> None:
    """Log the scores in a folder to MLflow through a journal there; when repeated, only what has changed.

    ``run`` is the one whose checkpoint was scored, ``paired`` the comparison with its dense model, where there are any.
    """
    journal = Journal(folder / "journal.jsonl")
    # The same command may be given again, and a task file of the user's be another by then.
    journal.append_changed({**task_metrics(scores), **paired_metrics(paired or ())})
    model = shown_model(settings["model"])
    tags = {"model": model, "mbs.folder": str(folder)}
    name = f"{model}, {settings['shots']} shots"
    tracked = evaluation_run(connection, folder.name, name, settings, tags, journal)
    if run is not None:
        _link(tracked, run)
    for file in (TASKS, ITEMS, *([] if paired is None else [FILE])):
        tracked.artifact(folder / file)
    tracked.finish("FINISHED")


def _link(tracked: TrackedRun, run: RunDirectory) -> None:
    """Tag an evaluation with the sweep's run whose checkpoint was scored, where the same MLflow knows that one."""
    told = run.tracking_identity()
    if told is None:
        return

    def deliver(client: "MlflowClient") -> None:
        experiment = client.get_experiment_by_name(told["experiment"])
        if experiment is None:
            return
        of_key = f"tags.`{KEY_TAG}` = '{told['run']['key']}'"
        for one in client.search_runs([experiment.experiment_id], of_key, max_results=1):
            client.set_tag(tracked.run_id, RUN_TAG, one.info.run_id)

    tracked.enqueue(deliver)
