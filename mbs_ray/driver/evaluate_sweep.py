"""Scores all checkpoints of a sweep, the dense ones too, on the same tasks: ``mbs evaluate SWEEP --tasks``."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from mbs_ray.cluster.arrivals import nodes_awaited
from mbs_ray.cluster.cluster_options import ClusterOptions
from mbs_ray.cluster.connect import check_ray, connected
from mbs_ray.cluster.stage_pool import StagePool
from mbs_ray.driver.checkpoint_scorer import CheckpointScorer, open_scorer
from mbs_ray.driver.evaluate_tasks import (
    OpenedTasks,
    TaskQuestion,
    TaskResult,
    open_question,
    score_tasks,
    scored_before,
    shared_requests,
)
from mbs_ray.driver.progress import Progress
from mbs_ray.run.prepare import Model, open_model
from mbs_ray.run.sweep_checkpoints import SweepCheckpoint, sweep_checkpoints
from mbs_ray.text.tokenizer_files import load_tokenizer


@dataclass(frozen=True)
class CheckpointScores:
    """Scores of one checkpoint of a sweep; ``anew`` says whether this command computed them."""

    label: str
    dense: bool
    result: TaskResult
    anew: bool


def evaluate_sweep(
    sweep: Path,
    *,
    tasks: TaskQuestion,
    compute_dtype: str,
    cluster: ClusterOptions,
    out: Path,
    progress: Progress,
    pool: StagePool | None = None,
) -> list[CheckpointScores]:
    """Score the dense models of a sweep and the checkpoints of its finished runs on tasks, each dense one first.

    What lies under ``out`` with the same settings is not scored again, so a command that was killed resumes. Models
    share the stages, or those of ``pool``, as far as they have the same layout. Raises :class:`InputError` before any
    stage works where a task or a checkpoint cannot be used, or no run has one.
    """
    checkpoints = sweep_checkpoints(sweep, progress.say)
    opened = open_question(tasks, out)
    check_ray(cluster.address)
    models = [_opened(one, out / "cache") for one in checkpoints]
    with (
        connected(cluster.address, cluster.cpus, lambda: _read(checkpoints, models, progress)),
        nodes_awaited(cluster, 1, progress.say),
        nullcontext(pool) if pool else StagePool() as stages,
    ):

        def scorer(checkpoint: SweepCheckpoint, model: Model) -> CheckpointScorer:
            return open_scorer(
                checkpoint.model,
                model,
                compute_dtype=compute_dtype,
                cluster=cluster,
                microbatches=shared_requests(cluster),
                pool=stages,
                out=out,
                progress=progress,
            )

        return list(_scored(checkpoints, models, scorer, opened, progress))


def _opened(checkpoint: SweepCheckpoint, cache: Path) -> Model:
    """Open a checkpoint under its run's name: the folders of all of them are named alike."""
    return replace(open_model(checkpoint.model, checkpoint.revision, cache), name=checkpoint.label)


def _read(checkpoints: Sequence[SweepCheckpoint], models: Sequence[Model], progress: Progress) -> None:
    for checkpoint, model in zip(checkpoints, models, strict=True):
        model.read_through(progress.work)
        checkpoint.refuse_another(model.fingerprint)


def _scored(
    checkpoints: Sequence[SweepCheckpoint],
    models: Sequence[Model],
    scorer: Callable[[SweepCheckpoint, Model], CheckpointScorer],
    tasks: OpenedTasks,
    progress: Progress,
) -> Iterator[CheckpointScores]:
    for number, (checkpoint, model) in enumerate(zip(checkpoints, models, strict=True), 1):
        own, place = scorer(checkpoint, model), f"model {number} of {len(models)}: {checkpoint.label}"
        before = scored_before(own, tasks)
        progress.say(place if before is None else f"{place}, scored before")
        result = before or score_tasks(own, tasks, load_tokenizer(str(model.checkpoint.folder)))
        yield CheckpointScores(checkpoint.label, bool(checkpoint.fingerprint), result, before is None)
