"""What MLflow is told of the runs of a sweep: names, colours, texts with fingerprints, a note, a view per model."""

import json
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from mlflow import MlflowClient
from typer.testing import CliRunner

from mbs_ray.cli import app
from mbs_ray.cluster.layout import Layout
from mbs_ray.compression.block_report import BlockReport, LinearReport, write_block_report
from mbs_ray.compression.layer_error import LayerError
from mbs_ray.driver.run_card import run_facts
from mbs_ray.model.manifest import MANIFEST
from mbs_ray.run.directory import RunDirectory
from mbs_ray.run.lease import leased
from mbs_ray.run.prepare import PreparedRun, prepare_runs
from mbs_ray.run.sweep_folders import SweepFolders
from mbs_ray.run.sweep_spec import SweepSpec, validated
from mbs_ray.tracking.mlflow_client import MlflowConnection, database_uri
from mbs_ray.tracking.replay import track_runs
from mbs_ray.tracking.sweep_tracking import SweepTracking
from mbs_ray.tracking.views import own_views, view_state

METRICS = {"ppl/en": 12.345, "ppl/sw": 30.0, "ppl_increase/en": 1.05, "ppl_increase/sw": 1.4567}
INTERVAL = {"ppl_increase_ci95_low/sw": 1.4321, "ppl_increase_ci95_high/sw": 1.5}
SUMMARIES = {"ppl_increase/geomean": 1.2367, "ppl_increase/worst": 1.4567}


def prepared(models: list[Path], corpus: Path, cache: Path, evaluated: bool = True) -> list[PreparedRun]:
    run = {
        "corpus": str(corpus),
        "languages": ["en", "sw"],
        "segments": 6,
        "sequence_length": 32,
        "evaluation": {"held-out": {"corpus": str(corpus), "segments": 5}} if evaluated else {},
    }
    grid = {
        "model": [str(model) for model in models],
        "method": [{"name": "magnitude", "sparsity": 0.5}],
        "sampling": ["equal", {"name": "monolingual", "language": "sw"}],
    }
    sweep = validated(SweepSpec, {"name": "tiny", "run": run, "grid": grid})
    specs = sweep.runs()
    return prepare_runs(specs, sweep.labels(specs), sweep.columns(specs), cache)


def begun(connection: MlflowConnection, folders: SweepFolders, runs: list[PreparedRun]) -> SweepTracking:
    tracked = SweepTracking(connection, folders, {})
    for run in runs:
        folders.run(run.label).claim({"label": run.label}, run_facts(run, {}, Layout(1)))
        tracked.begin(run, {"label": run.label}, {})
    return tracked


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("out")


@pytest.fixture
def folders(out: Path) -> SweepFolders:
    """A sweep of this test alone."""
    return SweepFolders(out, f"sweep-{uuid.uuid4()}")


@pytest.fixture
def connection(folders: SweepFolders) -> MlflowConnection:
    return MlflowConnection(database_uri(folders.out), folders.name, folders.artifacts)


def test_runs_of_several_models_are_named_by_what_was_done_with_the_model_last(
    connection: MlflowConnection, folders: SweepFolders, bloom: Path, hub_bloom: Path, corpus: Path
) -> None:
    begun(connection, folders, prepared([bloom, hub_bloom], corpus, folders.cache))
    runs = connection.client.search_runs([connection.experiment_id], "tags.`mbs.kind` = 'run'")
    assert {run.info.run_name for run in runs} == {
        f"magnitude-50-{sampling} ({model})"
        for sampling in ("equal", "monolingual-sw")
        for model in ("tiny-bloom", "hub-bloom")
    }
    colours = {run.data.tags["sampling"]: run.data.tags["mlflow.runColor"] for run in runs}
    assert len(set(colours.values())) == len(colours) == 2
    for run in runs:
        assert run.data.tags["mlflow.runColor"] == colours[run.data.tags["sampling"]]
    tags = connection.client.get_experiment(connection.experiment_id).tags
    assert [model for model, _ in own_views(tags)] == ["hub-bloom", "tiny-bloom"]


def test_a_run_of_the_only_model_is_named_as_its_folder(
    connection: MlflowConnection, folders: SweepFolders, bloom: Path, corpus: Path
) -> None:
    begun(connection, folders, prepared([bloom], corpus, folders.cache))
    runs = connection.client.search_runs([connection.experiment_id], "tags.`mbs.kind` = 'run'")
    assert all(run.info.run_name == Path(run.data.tags["mbs.folder"]).name for run in runs)
    assert {run.info.run_name for run in runs} == {"magnitude-50-equal", "magnitude-50-monolingual-sw"}


def test_signatures_of_addresses_are_in_no_file_and_in_no_tracker(
    connection: MlflowConnection, folders: SweepFolders, bloom: Path, corpus: Path
) -> None:
    secret = "hunter2"
    location = {
        "dataset": "json",
        "data_files": f"https://me:{secret}@host/{{language}}.jsonl?X-Amz-Signature={secret}",
    }
    run = prepared([bloom], corpus, folders.cache)[0]
    calibration = replace(run.calibration, corpus=location)
    calibration.__dict__["fingerprint"] = run.calibration.fingerprint
    evaluation = {name: one.model_copy(update={"corpus": location}) for name, one in run.spec.evaluation.items()}
    spec = run.spec.model_copy(update={"corpus": location, "evaluation": evaluation})
    tracked = begun(connection, folders, [replace(run, spec=spec, calibration=calibration)])
    tracked.fail(run.label, f"HTTPError: 403 Forbidden for url: https://host/en.jsonl?X-Amz-Signature={secret}")
    assert tracked.close("FAILED")
    files = [path for path in folders.out.rglob("*") if path.is_file()]
    assert {"spec.json", "tracking.json", "mlflow.db"} <= {path.name for path in files}
    assert [path for path in files if secret.encode() in path.read_bytes()] == []
    (stored,) = connection.client.search_runs([connection.experiment_id], "tags.`mbs.kind` = 'run'")
    assert stored.data.params["corpus.data_files"] == "https://host/{language}.jsonl"


def test_the_texts_of_a_run_are_logged_once_with_fingerprint_and_allocation(
    connection: MlflowConnection, folders: SweepFolders, bloom: Path, corpus: Path
) -> None:
    runs = prepared([bloom], corpus, folders.cache)
    for _ in range(2):
        begun(connection, folders, runs).close("KILLED")
    by_name = {run.label: run for run in runs}
    for stored in connection.client.search_runs([connection.experiment_id], "tags.`mbs.kind` = 'run'"):
        run = by_name[stored.info.run_name]
        inputs = {one.tags[0].value: one.dataset for one in stored.inputs.dataset_inputs}
        assert len(stored.inputs.dataset_inputs) == len(inputs) == 2
        calibration, evaluation = inputs["calibration"], inputs["evaluation"]
        assert (calibration.name, evaluation.name) == (run.spec.sampling.label, "held-out")
        assert run.calibration.fingerprint.startswith(calibration.digest) and len(calibration.digest) == 16
        assert run.evaluation["held-out"].fingerprint.startswith(evaluation.digest)
        assert json.loads(calibration.source) == {"uri": str(corpus)}
        assert json.loads(calibration.profile)["segments"] == run.allocation
        assert json.loads(evaluation.profile) == {"sequence_length": 32, "seed": 0, "segments_at_most": 5}


def test_the_note_of_a_finished_run_says_what_each_language_got_and_lost(
    connection: MlflowConnection, folders: SweepFolders, bloom: Path, corpus: Path
) -> None:
    runs = prepared([bloom], corpus, folders.cache)
    tracked = begun(connection, folders, runs)
    for run in runs:
        # In whatever order metrics come, the table has that of the run's languages.
        assert tracked.finish(run.label, dict(reversed((METRICS | INTERVAL | SUMMARIES).items())))
    assert tracked.close("FINISHED")
    stored = connection.client.search_runs([connection.experiment_id], "tags.sampling = 'monolingual-sw'")[0]
    note = stored.data.tags["mlflow.note.content"]
    first, second, *table = note.splitlines()
    assert first == "**magnitude-50** on tiny-bloom, calibration **monolingual-sw**: 6 segments of 32 tokens, seed 0."
    assert "On held-out" in second and "**1.237**" in second and "1.457 in the worst" in second
    assert table[-2:] == ["| en | 0 | 12.35 | 1.050 |  |", "| sw | 6 | 30.00 | 1.457 | 1.432 … 1.500 |"]


def test_the_note_names_the_means_of_groups(
    connection: MlflowConnection, folders: SweepFolders, bloom: Path, corpus: Path
) -> None:
    run, *_ = prepared([bloom], corpus, folders.cache)
    assert run.groups["latin"] == ("en", "sw") and "non-latin" not in run.groups
    tracked = begun(connection, folders, [run])
    assert tracked.finish(run.label, METRICS | SUMMARIES | {"ppl_increase/latin": 1.2367})
    (stored,) = connection.client.search_runs([connection.experiment_id], "tags.`mbs.kind` = 'run'")
    assert stored.data.metrics["ppl_increase/latin"] == 1.2367
    assert "Geometric means: 1.237 of languages in Latin script." in stored.data.tags["mlflow.note.content"]


def test_the_note_says_what_the_run_directory_says_not_what_mlflow_was_told(
    connection: MlflowConnection, folders: SweepFolders, bloom: Path, corpus: Path
) -> None:
    run = prepared([bloom], corpus, folders.cache)[0]
    tracked = begun(connection, folders, [run])
    directory = folders.run(run.label)
    facts = directory.facts()
    assert facts is not None
    assert (facts.label, facts.model, facts.method, facts.sampling) == (
        run.label,
        "tiny-bloom",
        "magnitude-50",
        "equal",
    )
    assert (facts.languages, facts.evaluation, facts.segments, facts.seed) == (("en", "sw"), ("held-out",), 6, 0)
    assert facts.fingerprints == {"model": run.model.fingerprint, "calibration": run.calibration.fingerprint}
    directory.claim({"label": run.label}, replace(facts, method="a-method", evaluation=("a-set",), seed=7))
    assert tracked.finish(run.label, METRICS | SUMMARIES)
    (stored,) = connection.client.search_runs([connection.experiment_id], "tags.`mbs.kind` = 'run'")
    first, second, *_ = stored.data.tags["mlflow.note.content"].splitlines()
    assert first.startswith("**a-method** on tiny-bloom") and first.endswith("seed 7.") and "On a-set" in second
    assert stored.data.tags["method"] == "magnitude-50" and stored.data.params["evaluation"] == "held-out"


def test_the_note_names_text_that_the_tokenizer_does_not_know(
    connection: MlflowConnection, folders: SweepFolders, bloom: Path, corpus: Path
) -> None:
    run, *_ = prepared([bloom], corpus, folders.cache)
    tracked = begun(connection, folders, [run])
    assert tracked.finish(run.label, METRICS | SUMMARIES | {"unknown_share/sw": 0.05, "unknown_share/en": 0.001})
    (stored,) = connection.client.search_runs([connection.experiment_id], "tags.`mbs.kind` = 'run'")
    assert stored.data.metrics["unknown_share/sw"] == 0.05
    said = "On held-out, unknown to the tokenizer: 5.0 % of sw (bytes); perplexity and bits per byte flatter there."
    assert stored.data.tags["mlflow.note.content"].endswith(said)


def test_a_run_without_evaluation_has_a_view_and_a_note_too(
    connection: MlflowConnection, folders: SweepFolders, bloom: Path, corpus: Path
) -> None:
    runs = prepared([bloom], corpus, folders.cache, evaluated=False)
    tracked = begun(connection, folders, runs)
    for run in runs:
        tracked.finish(run.label, {})
    notes = [
        run.data.tags["mlflow.note.content"]
        for run in connection.client.search_runs([connection.experiment_id], "tags.`mbs.kind` = 'run'")
    ]
    assert all(note.startswith("**magnitude-50** on tiny-bloom") and "|" not in note for note in notes)
    assert view_state("tiny-bloom", [])["selectedColumns"] == []
    assert len(own_views(connection.client.get_experiment(connection.experiment_id).tags)) == 1


def test_what_each_language_loses_in_each_block_is_tracked_as_metrics_table_and_figure(
    connection: MlflowConnection, folders: SweepFolders, bloom: Path, corpus: Path
) -> None:
    runs = prepared([bloom], corpus, folders.cache)
    tracked = begun(connection, folders, runs)
    measured, unmeasured = runs
    for block in range(2):
        errors = [LayerError("en", "dense", 1.0, 4.0 + block), LayerError("sw", "dense", 3.0, 4.0)]
        report = BlockReport(block, seconds={"propagate": 1.0}, layer_error=errors)
        write_block_report(folders.run(measured.label).blocks, report)
        tracked.sync()
    for run in runs:
        assert tracked.finish(run.label, METRICS | SUMMARIES)
    stored = {
        run.info.run_name: run.info.run_id
        for run in connection.client.search_runs([connection.experiment_id], "tags.`mbs.kind` = 'run'")
    }
    history = connection.client.get_metric_history(stored[measured.label], "layer_error/en")
    assert [(one.step, one.value) for one in history] == [(0, 0.25), (1, 0.2)]
    names = {
        label: {
            file.path
            for folder in ("figures", "reports")
            for file in connection.client.list_artifacts(stored[label], folder)
        }
        for label in stored
    }
    added = {"figures/layer_error.png", "reports/layer_errors.parquet"}
    assert names[measured.label] - names[unmeasured.label] == added
    table = pd.read_parquet(
        connection.client.download_artifacts(stored[measured.label], "reports/layer_errors.parquet")
    )
    assert table["relative"].tolist() == [0.25, 0.75, 0.2, 0.75]


def test_mbs_track_gives_another_database_all_that_the_live_run_gave(
    connection: MlflowConnection, folders: SweepFolders, bloom: Path, corpus: Path, tmp_path: Path
) -> None:
    runs = prepared([bloom], corpus, folders.cache)
    tracked = begun(connection, folders, runs)
    for run in runs:
        directory = folders.run(run.label)
        errors = [LayerError("en", "dense", 1.0, 4.0), LayerError("sw", "dense", 3.0, 4.0)]
        linear = LinearReport("dense", 2, 3, 96, 0.5, 0.1, 0.5, 0.0, 0, 1.0)
        write_block_report(directory.blocks, BlockReport(0, [linear], {"propagate": 1.0}, errors))
        directory.checkpoint.mkdir()
        for name in ("config.json", MANIFEST):
            (directory.checkpoint / name).write_text("{}")
        metrics = METRICS | INTERVAL | SUMMARIES
        assert tracked.finish(run.label, metrics)
        directory.finish({"metrics": metrics})
    assert tracked.close("FINISHED")
    elsewhere = f"sqlite:///{tmp_path}/mlflow.db"
    for _ in range(2):
        assert dict(track_runs(folders.sweep, elsewhere)) == dict.fromkeys(
            [*(run.label for run in runs), folders.name], True
        )
    live, replayed = (
        tracking_identity(client, folders.name) for client in (connection.client, MlflowClient(elsewhere))
    )
    assert replayed == live
    added = {"reports/layer_errors.parquet", "figures/layer_error.png", "reports/linears.parquet", "allocation.json"}
    assert set(live) == {run.label for run in runs} and all(added <= set(one["artefacts"]) for one in live.values())


def test_mlflow_shows_what_was_measured_last_where_the_text_of_a_set_became_another(
    connection: MlflowConnection, folders: SweepFolders, bloom: Path, corpus: Path
) -> None:
    runs = prepared([bloom], corpus, folders.cache)[:1]
    for metrics in (METRICS | SUMMARIES, METRICS | SUMMARIES | {"ppl/sw": 29.0}):
        for _ in range(2):
            tracked = begun(connection, folders, runs)
            assert tracked.finish(runs[0].label, metrics) and tracked.close("FINISHED")
    (stored,) = connection.client.search_runs([connection.experiment_id], "tags.`mbs.kind` = 'run'")
    assert stored.data.metrics["ppl/sw"] == 29.0 and stored.data.metrics["ppl/en"] == METRICS["ppl/en"]
    history = {key: connection.client.get_metric_history(stored.info.run_id, key) for key in ("ppl/sw", "ppl/en")}
    assert [one.value for one in history["ppl/sw"]] == [30.0, 29.0] and len(history["ppl/en"]) == 1


def tracking_identity(client: MlflowClient, experiment: str) -> dict[str, dict[str, Any]]:
    """All that MLflow holds of the runs of a sweep, by name, but for what it makes up itself."""
    experiment_id = client.get_experiment_by_name(experiment).experiment_id
    runs = client.search_runs([experiment_id], "tags.`mbs.kind` = 'run'")
    return {
        run.info.run_name: {
            "status": run.info.status,
            "params": run.data.params,
            "tags": {key: value for key, value in run.data.tags.items() if key != "mlflow.parentRunId"},
            "metrics": {
                key: [(one.step, one.value, one.timestamp) for one in client.get_metric_history(run.info.run_id, key)]
                for key in run.data.metrics
            },
            "artefacts": artefacts(client, run.info.run_id),
        }
        for run in runs
    }


def artefacts(client: MlflowClient, run_id: str, folder: str | None = None) -> dict[str, bytes]:
    found = {}
    for one in client.list_artifacts(run_id, folder):
        if one.is_dir:
            found |= artefacts(client, run_id, one.path)
        else:
            found[one.path] = Path(client.download_artifacts(run_id, one.path)).read_bytes()
    return found


def test_a_sweep_under_way_is_tracked_by_nobody_else(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "sweep" / "runs" / "a")
    directory.path.mkdir(parents=True)
    directory.keep_tracking_identity({})
    for folder in (tmp_path / "sweep", directory.path):
        with leased(tmp_path / "sweep"):
            result = CliRunner().invoke(app, ["track", str(folder)])
        assert result.exit_code == 2 and result.output.startswith(f"error: {tmp_path / 'sweep'}: held by ")
        assert result.output.count("\n") == 1 and not directory.journal.exists()
