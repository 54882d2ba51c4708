"""Aggregate runs in MLflow: means over seeds, once, from a live sweep as from its folder."""

from pathlib import Path
from typing import Any

import pytest

from mbs_ray.cluster.layout import Layout
from mbs_ray.driver.run_card import run_facts
from mbs_ray.run.prepare import prepare_runs
from mbs_ray.run.sweep_folders import SweepFolders
from mbs_ray.run.sweep_spec import SweepSpec, validated
from mbs_ray.tracking.mlflow_client import MlflowConnection, database_uri
from mbs_ray.tracking.replay import track_runs
from mbs_ray.tracking.sweep_tracking import SweepTracking


def sweep_of(connection: MlflowConnection, folders: SweepFolders, model: Path, corpus: Path, seeds: int) -> None:
    """What the driver tells MLflow of a sweep whose run with seed s increased perplexity by s + 1."""
    run = {
        "model": str(model),
        "corpus": str(corpus),
        "languages": ["en", "sw"],
        "segments": 6,
        "sequence_length": 32,
        "method": {"name": "magnitude", "sparsity": 0.5},
        "evaluation": {"held-out": {"corpus": str(corpus), "segments": 5}},
        "keep": "metrics",
    }
    grid = {"sampling": ["equal", {"name": "monolingual", "language": "sw"}], "seed": list(range(seeds))}
    sweep = validated(SweepSpec, {"name": "tiny", "run": run, "grid": grid})
    specs = sweep.runs()
    tracked = SweepTracking(connection, folders, {})
    for one in prepare_runs(specs, sweep.labels(specs), sweep.columns(specs), folders.cache):
        directory = folders.run(one.label)
        directory.claim({"label": one.label}, run_facts(one, {}, Layout(1)))
        increase = one.spec.seed + 1.0
        rows = ("en", "sw", "geomean", "worst", "latin")
        metrics = {f"ppl_increase/{row}": increase for row in rows} | {f"ppl/{row}": 8.0 for row in ("en", "sw")}
        metrics |= {"ppl_increase_ci95_low/en": 0.5, "scored_tokens/en": 9.0}
        tracked.begin(one, {"label": one.label}, {})
        text = {name: request.fingerprint for name, request in one.evaluation.items()}
        directory.finish({"evaluation": text, "metrics": metrics, "dense": {}, "keep": "metrics"})
        tracked.finish(one.label, metrics)
    tracked.aggregate()
    assert tracked.close("FINISHED")


def aggregates(connection: MlflowConnection) -> dict[str, Any]:
    found = connection.client.search_runs([connection.experiment_id], "tags.`mbs.kind` = 'aggregate'")
    return {run.data.tags["sampling"]: run for run in found}


@pytest.fixture
def folders(tmp_path: Path) -> SweepFolders:
    return SweepFolders(tmp_path / "out", "tiny")


@pytest.fixture
def connection(folders: SweepFolders) -> MlflowConnection:
    return MlflowConnection(database_uri(folders.out), folders.name, folders.artifacts)


def test_a_group_of_seeds_has_a_run_with_means_and_spreads(
    connection: MlflowConnection, folders: SweepFolders, bloom: Path, corpus: Path
) -> None:
    sweep_of(connection, folders, bloom, corpus, seeds=3)
    found = aggregates(connection)
    assert set(found) == {"equal", "monolingual-sw"}
    equal = found["equal"]
    assert equal.info.run_name == "magnitude-50-equal, mean over seeds"
    assert equal.info.status == "FINISHED"
    assert equal.data.metrics == {
        **{f"ppl_increase/{row}": 2.0 for row in ("en", "sw", "geomean", "worst", "latin")},
        **{f"seed_sd/ppl_increase/{row}": 1.0 for row in ("en", "sw", "geomean", "worst", "latin")},
        **{f"ppl/{row}": 8.0 for row in ("en", "sw")},
        **{f"seed_sd/ppl/{row}": 0.0 for row in ("en", "sw")},
        "seeds": 3.0,
    }
    tags = equal.data.tags
    assert (tags["aggregate"], tags["seeds"], tags["method"]) == ("seed", "0,1,2", "magnitude-50")
    assert "seed" not in tags and "seed" not in equal.data.params and equal.data.params["segments"] == "6"
    assert "3 runs that differ by their seed alone (seeds 0, 1, 2)" in tags["mlflow.note.content"]
    assert "geomean 2.000 ± 1.000, worst 2.000 ± 1.000" in tags["mlflow.note.content"]
    (parent,) = connection.client.search_runs([connection.experiment_id], "tags.`mbs.kind` = 'sweep'")
    assert tags["mlflow.parentRunId"] == parent.info.run_id


def test_a_replay_doubles_nothing_and_a_further_seed_renews_the_means(
    connection: MlflowConnection, folders: SweepFolders, bloom: Path, corpus: Path, tmp_path: Path
) -> None:
    sweep_of(connection, folders, bloom, corpus, seeds=2)
    before = aggregates(connection)["equal"]
    taken = dict(track_runs(folders.sweep, None))
    assert len(taken) == 4 + 2 + 1 and all(taken.values())
    again = aggregates(connection)
    assert len(again) == 2 and again["equal"].info.run_id == before.info.run_id
    history = connection.client.get_metric_history(before.info.run_id, "ppl_increase/sw")
    assert [one.value for one in history] == [1.5]
    sweep_of(connection, folders, bloom, corpus, seeds=3)
    renewed = aggregates(connection)["equal"]
    assert renewed.info.run_id == before.info.run_id and renewed.data.tags["seeds"] == "0,1,2"
    assert renewed.data.metrics["ppl_increase/sw"] == 2.0 and renewed.data.metrics["seeds"] == 3.0
    # Another MLflow is told the same.
    elsewhere = MlflowConnection(database_uri(tmp_path / "elsewhere"), folders.name, tmp_path / "elsewhere")
    assert all(taken for _, taken in track_runs(folders.sweep, database_uri(tmp_path / "elsewhere")))
    assert aggregates(elsewhere)["equal"].data.metrics == renewed.data.metrics


def test_without_repeated_seeds_there_is_no_aggregate(
    connection: MlflowConnection, folders: SweepFolders, bloom: Path, corpus: Path
) -> None:
    sweep_of(connection, folders, bloom, corpus, seeds=1)
    assert aggregates(connection) == {} and not (folders.sweep / "aggregates").exists()
    assert len(dict(track_runs(folders.sweep, None))) == 2 + 1
