"""A sweep whose runs differ by their seed alone: mean and spread in terminal, table, note, page and MLflow."""

import io
from pathlib import Path

import pytest
from mlflow import MlflowClient
from ray.cluster_utils import Cluster
from rich.console import Console

from mbs_ray.driver.progress import Progress
from mbs_ray.driver.sweep import conduct
from mbs_ray.run.sweep_spec import SweepSpec, validated
from tests.support.models import HELD_OUT, write_corpus
from tests.support.stages import WARM


@pytest.mark.slow
def test_seeds_are_one_column_and_one_aggregate_run_and_again_when_nothing_is_left_to_do(
    ray_cluster: Cluster, bloom: Path, corpus: Path, tmp_path: Path
) -> None:
    held_out = write_corpus(tmp_path / "held-out", 25, first=HELD_OUT)
    run = {
        "model": str(bloom),
        "corpus": str(corpus),
        "languages": "en,sw",
        "segments": 4,
        "sequence_length": 32,
        "method": "wanda",
        "sampling": "equal",
        "keep": "metrics",
        "evaluation": {"held-out": {"corpus": str(held_out), "segments": 3}},
    }
    sweep = validated(
        SweepSpec,
        {"name": "seeds", "run": run, "grid": {"seed": [0, 1]}, "layout": {"stages": 1, "replicas": 1}, "threads": 1},
    )
    for _ in range(2):
        result = conduct(sweep, tmp_path, None, Progress(Console(file=io.StringIO(), width=200)), pool=WARM)
        assert result.failed == {}
        (table,), (spread,) = result.tables.values(), result.spreads.values()
        column = table.columns[0]
        assert spread.runs == {column: 2}
        client = MlflowClient(result.tracking_uri)
        experiment = client.get_experiment_by_name("seeds")
        (aggregate,) = client.search_runs([experiment.experiment_id], "tags.`mbs.kind` = 'aggregate'")
        metrics = aggregate.data.metrics
        assert metrics["ppl_increase/sw"] == pytest.approx(table.loc["sw", column])
        assert metrics["seed_sd/ppl_increase/sw"] == pytest.approx(spread.deviations.loc["sw", column])
        assert metrics["seed_sd/ppl_increase/sw"] > 0 and metrics["seeds"] == 2
        assert len(client.get_metric_history(aggregate.info.run_id, "ppl_increase/sw")) == 1
        (parent,) = client.search_runs([experiment.experiment_id], "tags.`mbs.kind` = 'sweep'")
        assert "equal (2 seeds)" in parent.data.tags["mlflow.note.content"]
    assert "Increase, mean over seeds" in (tmp_path / "seeds" / "report.html").read_text()
