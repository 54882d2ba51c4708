"""Tasks of lm-evaluation-harness on stages of Ray: likelihoods and accuracies of HFLM, answers kept, the command."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray.cluster_utils import Cluster
from rich.console import Console
from typer.testing import CliRunner

from mbs_ray.cli import app
from mbs_ray.cluster.cluster_options import ClusterOptions
from mbs_ray.cluster.stage_pool import StagePool
from mbs_ray.driver.evaluate import TextQuestion, evaluate
from mbs_ray.driver.evaluate_tasks import TaskQuestion
from mbs_ray.driver.progress import Progress
from mbs_ray.evaluation.zero_shot import TaskScore, open_tasks, run_tasks, task_metrics
from mbs_ray.run.spec import EvaluationSpec
from mbs_ray.run.sweep_spec import validated
from mbs_ray.tracking.mlflow_client import MlflowConnection, database_uri
from mbs_ray.tracking.tracked_tasks import track_scores
from tests.evaluation.test_zero_shot import assert_same, scoring, staged_lm
from tests.support.stages import WARM

pytestmark = pytest.mark.usefixtures("own_tasks_only")


@pytest.mark.slow
def test_tasks_on_two_stages_have_the_likelihoods_and_accuracies_of_hflm(
    ray_cluster: Cluster, bloom: Path, tmp_path: Path, task_folder: Path, harness: Any
) -> None:
    names = ("river", "ford_en", "ford_sw")
    answers: list[list[tuple[float, bool]]] = []

    class Listening:
        """Passes everything on, and keeps the answers."""

        def __init__(self, lm: Any) -> None:
            self.lm, self.rank, self.world_size = lm, 0, 1

        def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
            answers.append(self.lm.loglikelihood(requests))
            return answers[-1]

    with scoring(bloom, tmp_path, 2) as score:
        staged = staged_lm(bloom, score)
        (ours, items), (theirs, others) = (
            run_tasks(Listening(lm), open_tasks(names, task_folder), shots=1) for lm in (staged, harness)
        )
    assert len(answers[0]) == 3 * 9 * 3 + 2 * 6 * 2
    assert_same(*answers)
    assert [one.accuracy for one in ours] == [one.accuracy for one in theirs]
    assert [one.bits_per_byte for one in ours] == pytest.approx([one.bits_per_byte for one in theirs], rel=1e-4)
    assert [(one.key, one.question, one.score) for one in items] == [
        (one.key, one.question, one.score) for one in others
    ]
    assert [value for one in items for value in one.loglikelihoods] == [value for value, _ in answers[0]]
    for one in ours:
        own = [item for item in items if (item.task, item.language) == (one.task, one.language)]
        assert sum(item.score for item in own) / len(own) == one.accuracy
        assert all(item.score == (np.argmax(item.loglikelihoods) == item.right) for item in own)
        bits = sum(-item.loglikelihoods[item.right] / math.log(2) for item in own)
        assert one.bits_per_byte == pytest.approx(bits / sum(item.bytes[item.right] for item in own))
    assert [(one.task, one.language, one.documents) for one in ours] == [
        ("ford", "en", 6), ("ford", "sw", 6), ("river", "en", 9), ("river", "zh-Hans", 9), ("river", "sw", 9),
    ]  # fmt: skip
    assert len({one.accuracy for one in ours}) > 1
    for one in ours:
        n = one.documents
        assert one.stderr == pytest.approx(math.sqrt(one.accuracy * (1 - one.accuracy) / (n - 1)))


@pytest.mark.slow
def test_text_and_tasks_are_scored_on_stages_that_are_started_once(
    ray_cluster: Cluster, bloom: Path, corpus: Path, tmp_path: Path, task_folder: Path
) -> None:
    text = TextQuestion("en,sw", {"text": validated(EvaluationSpec, {"corpus": str(corpus), "sequence_length": 32})})
    asked = {"revision": None, "compute_dtype": "float32", "cluster": ClusterOptions(stages=1, replicas=1, threads=1)}
    progress, tasks = (
        Progress(Console(quiet=True)),
        TaskQuestion(["river", "ford_en"], limit=3, include_path=task_folder),
    )
    with StagePool() as pool:
        both = evaluate(str(bloom), text=text, tasks=tasks, out=tmp_path, progress=progress, pool=pool, **asked)
        assert pool.starts == 1
    alone = evaluate(str(bloom), text=text, tasks=None, out=tmp_path / "alone", progress=progress, pool=WARM, **asked)
    assert both.tasks is not None and len(both.tasks[1]) == 4 and alone.tasks is None
    assert both.texts["text"][1] == alone.texts["text"][1]


def test_the_command_prints_writes_and_tracks_accuracies(
    ray_cluster: Cluster, bloom: Path, tmp_path: Path, task_folder: Path
) -> None:
    command = ["evaluate", bloom, "--tasks", "river,ford_en", "--include-path", task_folder, "--limit", 4,
               "--stages", 1, "--threads", 1, "--out", tmp_path]  # fmt: skip
    result = CliRunner(env={"COLUMNS": "120"}).invoke(app, [str(word) for word in command])
    assert result.exit_code == 0, result.output
    assert "zh-Hans" in result.stdout and "accuracy of tiny-bloom, 0 shots" in result.stdout
    (written,) = (tmp_path / "evaluated").glob("*/tasks.json")
    assert "bits per byte of the right answers" in " ".join(result.stdout.split())
    same = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["compare", str(written.parent), str(written.parent)])
    assert same.exit_code == 0, same.output
    assert same.stdout.count("within noise") == 4 + 3 + 1 and "worse" not in same.stdout
    content = json.loads(written.read_text())
    assert content["shots"] == 0 and content["limit"] == 4 and {one["documents"] for one in content["scores"]} == {4}
    scores = [TaskScore(**one) for one in content.pop("scores")]
    metrics = task_metrics(scores)
    connection = MlflowConnection(database_uri(tmp_path), "evaluate", tmp_path / "artifacts")
    track_scores(connection, content, written.parent, scores)
    client = connection.client
    experiment = client.get_experiment_by_name("evaluate")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED" and run.data.tags["mbs.kind"] == "run"
    assert run.data.metrics == pytest.approx(metrics)
    assert {"acc/river/zh-Hans", "acc_stderr/ford/en", "acc/mean/sw", "acc/mean/all"} <= metrics.keys()
    assert len(client.get_metric_history(run.info.run_id, "acc/mean/all")) == 1
