"""A whole sweep on a real cluster: corpus to checkpoints, figures and MLflow."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from mlflow import MlflowClient
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from mbs_ray.cli import app
from mbs_ray.driver.conclusion import SweepResult
from mbs_ray.evaluation.perplexity import geometric_mean
from mbs_ray.languages.codes import GROUPS
from mbs_ray.report.page import write_report_page
from mbs_ray.run.directory import RunDirectory
from tests.support.tiny_sweep import LABELS


def test_every_run_leaves_a_checkpoint_that_transformers_loads(swept: tuple[Path, SweepResult, str]) -> None:
    out, result, _ = swept
    assert result.failed == {}
    for label in LABELS:
        model = AutoModelForCausalLM.from_pretrained(out / "tiny" / "runs" / label / "checkpoint")
        weight = model.transformer.h[3].mlp.dense_h_to_4h.weight
        assert int((weight == 0).sum()) == weight.numel() // 2
        assert model.dtype == torch.bfloat16


def test_mlflow_knows_where_every_checkpoint_lies_and_what_it_holds(swept: tuple[Path, SweepResult, str]) -> None:
    out, result, _ = swept
    client = MlflowClient(result.tracking_uri)
    experiment = client.get_experiment_by_name("tiny")
    children = client.search_runs([experiment.experiment_id], "tags.`mbs.kind` = 'run'")
    assert len(children) == len(LABELS)
    for child in children:
        checkpoint = out / "tiny" / "runs" / child.info.run_name / "checkpoint"
        manifest = hashlib.sha256((checkpoint / "manifest.json").read_bytes()).hexdigest()
        assert child.data.tags["mbs.checkpoint"] == str(checkpoint)
        assert child.data.tags["mbs.checkpoint_sha256"] == manifest
        verified = CliRunner().invoke(app, ["verify", str(checkpoint.parent)])
        assert verified.exit_code == 0 and "all as written" in verified.output


def test_the_allocation_is_printed_before_anything_runs(swept: tuple[Path, SweepResult, str]) -> None:
    _, _, printed = swept
    lines = printed.splitlines()
    first = lines.index("allocation equal (12 segments): en 3  fr 3  hi 3  sw 3")
    assert first < min(number for number, line in enumerate(lines) if line.startswith("layout"))
    assert "magnitude-50-equal: done" in printed


def test_the_tables_hold_what_the_scores_say(swept: tuple[Path, SweepResult, str]) -> None:
    out, result, _ = swept
    table = result.tables["tiny-bloom-held-out"]
    assert ["-".join(column) for column in table.columns] == LABELS
    summaries = ["geomean", "worst", "latin", "non-latin", "low-share", "high-share"]
    assert list(table.index) == ["en", "fr", "hi", "sw", *summaries]
    for label, column in zip(LABELS, table.columns, strict=True):
        scores = pq.read_table(out / "tiny" / "runs" / label / "evaluation" / "held-out.parquet").to_pandas()
        (dense_path,) = out.glob("dense/*/evaluation/held-out.parquet")
        dense = pq.read_table(dense_path).to_pandas()
        assert (scores["document"].astype(str) == dense["document"].astype(str)).all()
        difference = (scores["nll"].astype(float) - dense["nll"].astype(float)).groupby(scores["language"].astype(str))
        expected = difference.mean().map(lambda value: float(torch.tensor(value, dtype=torch.float64).exp()))
        for language in ("en", "fr", "sw", "hi"):
            assert table.loc[language, column] == pytest.approx(expected[language], rel=1e-9)
        assert table.loc["worst", column] == pytest.approx(expected.max(), rel=1e-9)
        assert table.loc["geomean", column] == pytest.approx(geometric_mean(expected.to_dict()), rel=1e-9)
        assert table.loc["non-latin", column] == pytest.approx(expected["hi"], rel=1e-9)
        assert table.loc["low-share", column] == pytest.approx(expected["sw"], rel=1e-9)
    written = pd.read_csv(out / "tiny" / "increase-tiny-bloom-held-out.csv", index_col="language")
    assert list(written.columns) == LABELS


def test_mlflow_holds_parent_and_runs_with_metrics_params_and_artefacts(swept: tuple[Path, SweepResult, str]) -> None:
    out, result, _ = swept
    assert result.tracking_uri == f"sqlite:///{out}/mlflow.db"
    client = MlflowClient(result.tracking_uri)
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"tiny", *LABELS}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    for label in LABELS:
        run = runs[label]
        assert run.data.tags["mlflow.parentRunId"] == runs["tiny"].info.run_id
        for metric in ("ppl/sw", "bpb/hi", "ppl_increase/en", "ppl_increase/geomean", "ppl_increase_all/worst"):
            assert metric in run.data.metrics
        steps = client.get_metric_history(run.info.run_id, "block/sparsity")
        assert [metric.step for metric in steps] == [0, 1, 2, 3]
        assert run.data.params["sampling.name"] in ("equal", "proportional")
        assert len(run.data.params["fingerprint.model"]) == 64
        names = {file.path for file in client.list_artifacts(run.info.run_id)}
        assert {"allocation.json", "spec.json", "reports"} <= names
    figures = {file.path for file in client.list_artifacts(runs["tiny"].info.run_id, "figures")}
    assert "figures/increase-tiny-bloom-held-out.png" in figures
    assert "report.html" in {file.path for file in client.list_artifacts(runs["tiny"].info.run_id)}


def test_a_sweep_ends_with_its_report(swept: tuple[Path, SweepResult, str]) -> None:
    out, result, _ = swept
    assert out / "tiny" / "report.html" in result.files
    page = (out / "tiny" / "report.html").read_text()
    for label in LABELS:
        metrics = json.loads((out / "tiny" / "runs" / label / "result.json").read_text())["metrics"]
        assert label in page
        for metric in ("ppl/sw", "ppl_increase/hi", "ppl_increase/geomean", "ppl_all/en", "ppl_increase_all/worst"):
            assert f'<data value="{metrics[metric]}">' in page
    assert "What the stages did" in page and "Loss of every block" in page


def test_run_directories_say_what_mlflow_was_told_and_are_reported_without_it(
    swept: tuple[Path, SweepResult, str], tmp_path: Path
) -> None:
    out, _, _ = swept
    page = (out / "tiny" / "report.html").read_text()
    heavy = ("*.safetensors", "checkpoint", "report.html")  # of blocks, the reports are read
    untracked, older = (tmp_path / name / "tiny" for name in ("untracked", "older"))
    shutil.copytree(out / "tiny", untracked, ignore=shutil.ignore_patterns("tracking.json", *heavy))
    shutil.copytree(out / "tiny", older, ignore=shutil.ignore_patterns("run.json", *heavy))
    for label in LABELS:
        for folder in (untracked, older):
            (folder / "runs" / label / "checkpoint").mkdir()
        path = older / "runs" / label / "result.json"
        content = json.loads(path.read_text())
        assert list(content.pop("dense")) == ["all", "held-out"]
        path.write_text(json.dumps(content))  # as the version before left it
        facts = [RunDirectory(folder / "runs" / label).facts() for folder in (untracked, older)]
        assert facts[0] is not None and facts[0].evaluation == ("held-out", "all")
        assert set(facts[0].groups) == set(GROUPS)  # of which MLflow is not told
        assert replace(facts[0], groups={}) == facts[1]
    assert write_report_page(untracked).read_text() == page
    assert write_report_page(older).read_text() == page
