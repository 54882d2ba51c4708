"""A whole sweep on a real cluster: corpus to checkpoints, figures and MLflow; again, it computes nothing."""

import hashlib
import io
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from mlflow import MlflowClient
from ray.cluster_utils import Cluster
from rich.console import Console
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from mbs_ray.cli import app
from mbs_ray.cluster.cluster_options import ClusterOptions
from mbs_ray.cluster.layout import Layout
from mbs_ray.cluster.resources import Resources
from mbs_ray.driver.conclusion import SweepResult
from mbs_ray.driver.evaluate import TextQuestion, evaluate
from mbs_ray.driver.progress import Progress
from mbs_ray.errors import InputError
from mbs_ray.evaluation.metric_names import INCREASE, MetricNames
from mbs_ray.evaluation.perplexity import geometric_mean, stored_interval
from mbs_ray.languages.codes import GROUPS
from mbs_ray.report.compare import compare_runs, compare_with_dense
from mbs_ray.report.page import write_report_page
from mbs_ray.run.directory import RunDirectory
from mbs_ray.run.numerics import Numerics
from mbs_ray.run.spec import EvaluationSpec
from mbs_ray.run.sweep_spec import LayoutSpec, SweepSpec, validated
from mbs_ray.tracking.replay import track_runs
from tests.support.models import HELD_OUT, write_corpus
from tests.support.stages import kill_a_stage_after
from tests.support.sweeps import run_sweep

LABELS = ["magnitude-50-equal", "magnitude-50-proportional", "sparsegpt-50-equal", "sparsegpt-50-proportional"]


def spec(bloom: Path, corpus: Path, held_out: Path, stages: int = 2, **changes: object) -> SweepSpec:
    run = {
        "model": str(bloom),
        "corpus": str(corpus),
        "languages": ["en", "fr", "sw", "hi"],
        "segments": 12,
        "sequence_length": 32,
        "evaluation": {
            "held-out": {"corpus": str(held_out), "segments": 5},
            "all": {"corpus": str(held_out), "segments": None},
        },
    }
    grid = {
        "method": [{"name": "magnitude", "sparsity": 0.5}, {"name": "sparsegpt", "sparsity": 0.5}],
        "sampling": ["equal", "proportional"],
    }
    return validated(
        SweepSpec, {"name": "tiny", "run": {**run, **changes}, "grid": grid, "layout": {"stages": stages}, "threads": 1}
    )


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("held-out"), 25, first=HELD_OUT)


@pytest.fixture(scope="module")
def swept(
    ray_cluster: Cluster, bloom: Path, corpus: Path, held_out: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, SweepResult, str]:
    assert "MLFLOW_TRACKING_URI" not in os.environ
    out = tmp_path_factory.mktemp("out")
    return out, *run_sweep(spec(bloom, corpus, held_out), out)


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


def test_the_same_command_again_computes_nothing_and_doubles_nothing(
    swept: tuple[Path, SweepResult, str], bloom: Path, corpus: Path, held_out: Path
) -> None:
    out, result, _ = swept
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    facts = {path: path.read_bytes() for path in out.glob("tiny/runs/*/run.json")}
    again, printed = run_sweep(spec(bloom, corpus, held_out, stages=1), out)
    assert "all runs are finished" in printed
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")} == before
    assert len(facts) == len(LABELS) and {path: path.read_bytes() for path in facts} == facts
    for title, table in result.tables.items():
        pd.testing.assert_frame_equal(table, again.tables[title])
    client = MlflowClient(result.tracking_uri)
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert len(runs) == 1 + len(LABELS)
    child = next(run for run in runs if run.info.run_name == LABELS[0])
    assert len(client.get_metric_history(child.info.run_id, "ppl/sw")) == 1
    assert len(client.get_metric_history(child.info.run_id, "block/seconds")) == 4


def test_files_that_cannot_be_written_at_the_end_fail_neither_runs_nor_sweep_and_are_made_up_for(
    swept: tuple[Path, SweepResult, str], bloom: Path, corpus: Path, held_out: Path, tmp_path: Path
) -> None:
    out, result, _ = swept
    sweep = spec(bloom, corpus, held_out).model_dump(mode="json", exclude={"run", "nvme_path"})
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({**sweep, **spec(bloom, corpus, held_out).run}, sort_keys=False))
    folder, invoke = out / "tiny", CliRunner(env={"COLUMNS": "160"}).invoke
    page, table = folder / "report.html", folder / "increase-tiny-bloom-held-out.csv"
    figures = [folder / "figures" / f"{name}.png" for name in ("allocations", "increase-tiny-bloom-all")]
    command = ["sweep", str(tmp_path / "tiny.yaml"), "--out", str(out)]
    for path in (page, table, *figures):
        path.unlink()
        path.mkdir()  # stands in the way of the file
    try:
        done = invoke(app, command)
        assert [path.name for path in folder.rglob(".*")] == []
    finally:
        for path in (page, table, *figures):
            path.rmdir()
    assert done.exit_code == 0, done.output
    said = " ".join(done.stdout.split())
    for path in (table, *figures):
        assert f"{path.name} was not written: IsADirectoryError: " in said
        assert f"written: {path}" not in done.stdout.splitlines()
    assert said.count("; once that is mended: the same command again") == 3
    assert "perplexity increase: tiny-bloom-held-out" in said
    assert f"the report was not written: {page}: cannot be written (Is a directory)" in said
    assert f"once that is mended: mbs report {page.parent}" in said
    assert f"written: {page}" not in done.stdout.splitlines()
    parent = MlflowClient(result.tracking_uri).search_runs(
        [MlflowClient(result.tracking_uri).get_experiment_by_name("tiny").experiment_id], "tags.`mbs.kind` = 'sweep'"
    )
    assert [run.info.status for run in parent] == ["FINISHED"]
    assert invoke(app, ["report", str(page.parent)]).exit_code == 0 and page.is_file()
    assert invoke(app, command).exit_code == 0 and all(path.is_file() for path in (table, *figures))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"seed": 5}, "calibration"),
        ({"microbatch": 7}, "microbatch"),
        ({"segments": 16}, "calibration"),
        ({"per_language": True}, "per_language False, now it is True"),
    ],
)
def test_a_changed_field_is_refused_by_name(
    swept: tuple[Path, SweepResult, str], bloom: Path, corpus: Path, held_out: Path, changes: dict, field: str
) -> None:
    out, _, _ = swept
    advice = "; give the same as then, give the sweep another name, or remove this folder"
    with pytest.raises(InputError, match=f"was begun with {field}.*{advice}$"):
        run_sweep(spec(bloom, corpus, held_out, **changes), out)


def test_another_first_evaluation_set_is_refused_since_its_metrics_have_no_set_in_their_names(
    swept: tuple[Path, SweepResult, str], bloom: Path, corpus: Path, held_out: Path
) -> None:
    out, _, _ = swept
    turned = dict(reversed(spec(bloom, corpus, held_out).run["evaluation"].items()))
    with pytest.raises(InputError, match="was begun with evaluation set 'held-out' first, now 'all' is; keep"):
        run_sweep(spec(bloom, corpus, held_out, evaluation=turned), out)


def test_a_changed_method_under_the_same_label_is_refused_by_name(
    swept: tuple[Path, SweepResult, str], bloom: Path, corpus: Path, held_out: Path
) -> None:
    out, _, _ = swept
    sweep = spec(bloom, corpus, held_out)
    # Labels round: what they leave out is refused by the signature.
    sparser = {"method": [{"name": "sparsegpt", "sparsity": 0.50000001}], "sampling": ["equal"]}
    with pytest.raises(InputError, match=r"was begun with method\.sparsity 0\.5, now it is 0\.50000001"):
        run_sweep(sweep.model_copy(update={"grid": sparser}), out)


def test_a_checkpoint_evaluated_alone_has_the_scores_of_its_run(
    swept: tuple[Path, SweepResult, str], held_out: Path
) -> None:
    out, _, _ = swept
    label = "sparsegpt-50-proportional"
    result = json.loads((out / "tiny" / "runs" / label / "result.json").read_text())
    same = validated(EvaluationSpec, {"corpus": str(held_out), "segments": 5, "sequence_length": 32})
    alone = evaluate(
        str(out / "tiny" / "runs" / label / "checkpoint"),
        revision=None,
        text=TextQuestion("en,fr,sw,hi", {"held-out": same}),
        tasks=None,
        compute_dtype="auto",
        cluster=ClusterOptions(stages=1, replicas=1, threads=1),
        out=out,
        progress=Progress(Console(file=io.StringIO())),
    )
    _, scores = alone.texts["held-out"]
    for language, score in scores.items():
        assert score.perplexity == pytest.approx(result["metrics"][f"ppl/{language}"], rel=1e-6)


def test_two_runs_and_a_run_and_its_dense_model_are_compared_on_every_set(swept: tuple[Path, SweepResult, str]) -> None:
    out, _, _ = swept
    a, b = (out / "tiny" / "runs" / label for label in (LABELS[0], LABELS[2]))
    invoke = CliRunner(env={"COLUMNS": "160"}).invoke
    done = invoke(app, ["compare", str(a), str(b)])
    assert done.exit_code == 0, done.output
    for name in ("held-out", "all"):
        assert f"B against A on {name}" in done.output
        assert (b / "comparisons" / f"{LABELS[0]}-{name}.png").is_file()
    held_out, everything = compare_with_dense(a)
    assert (held_out.a, held_out.b) == ("tiny-bloom (dense)", LABELS[0])
    metrics = json.loads((a / "result.json").read_text())["metrics"]
    for one, names in ((held_out, MetricNames()), (everything, MetricNames("all"))):
        for row in ("en", "fr", "hi", "sw", "geomean"):
            difference = one.differences[row]
            assert difference.ratio == pytest.approx(metrics[names.increase(row)], rel=1e-9)
            stored = stored_interval(metrics, names, INCREASE, row)
            assert difference.ratio_interval == pytest.approx(stored, rel=1e-9)
    for arguments, message in (
        ([a], "give either RUN_B or --dense"),
        ([a, out], "no run directory"),
        ([a, b, "--dense"], "give either RUN_B or --dense"),
        ([a, b, "--out", a / "result.json"], "cannot be written"),
    ):
        refused = invoke(app, ["compare", *map(str, arguments)])
        assert refused.exit_code == 2 and message in refused.stderr


def test_runs_without_a_common_set_or_on_other_text_are_refused(
    swept: tuple[Path, SweepResult, str], tmp_path: Path
) -> None:
    out, _, _ = swept
    a = out / "tiny" / "runs" / LABELS[0]
    b = Path(shutil.copytree(a, tmp_path / "tiny" / "runs" / LABELS[0]))
    assert [(one.a, one.b) for one in compare_runs(a, b)] == [(f"tiny/{LABELS[0]}", f"tiny/{LABELS[0]}")] * 2
    result = json.loads((b / "result.json").read_text())
    changed = {**result, "evaluation": {**result["evaluation"], "all": "0" * 64}}
    (b / "result.json").write_text(json.dumps(changed))
    with pytest.raises(InputError, match=r"evaluation set all: .* other text or of another tokenizer"):
        compare_runs(a, b)
    (b / "run.json").write_text((b / "run.json").read_text().replace('"held-out"', '"x"').replace('"all"', '"y"'))
    changed = {**result, "evaluation": {"x": "0", "y": "0"}}
    (b / "result.json").write_text(json.dumps(changed))
    with pytest.raises(InputError, match=r"no evaluation set in common: .* held-out, all.* has x, y"):
        compare_runs(a, b)


def test_journals_are_replayed_into_another_database_once(swept: tuple[Path, SweepResult, str], tmp_path: Path) -> None:
    out, _, _ = swept
    uri = f"sqlite:///{tmp_path / 'other.db'}"
    one = out / "tiny" / "runs" / LABELS[2]
    assert dict(track_runs(one, uri)) == {LABELS[2]: True}
    assert dict(track_runs(out / "tiny", uri)) == dict.fromkeys(LABELS, True)
    there, here = MlflowClient(uri), MlflowClient(f"sqlite:///{out / 'mlflow.db'}")
    metrics = {}
    for client in (here, there):
        runs = client.search_runs([client.get_experiment_by_name("tiny").experiment_id])
        children = [run for run in runs if "sampling" in run.data.tags]
        assert len(runs) == 5 and {run.info.status for run in runs} == {"FINISHED"}
        metrics[client] = {
            run.info.run_name: {
                key: sorted((one.step, one.value) for one in client.get_metric_history(run.info.run_id, key))
                for key in run.data.metrics
            }
            for run in children
        }
    assert metrics[there] == metrics[here]
    named = [
        {
            run.info.run_name: {one.path for one in client.list_artifacts(run.info.run_id)}
            for run in client.search_runs([client.get_experiment_by_name("tiny").experiment_id])
            if "sampling" in run.data.tags
        }
        for client in (here, there)
    ]
    assert named[0] == named[1] and "reports" in named[1][LABELS[0]]
    with pytest.raises(InputError, match="neither the folder of a run nor that of a sweep"):
        list(track_runs(out, uri))


@pytest.mark.slow
def test_a_single_run_is_shared_by_replicas_and_goes_on_with_as_many(
    ray_cluster: Cluster, bloom: Path, corpus: Path, held_out: Path, tmp_path: Path
) -> None:
    one = {"method": [{"name": "sparsegpt", "sparsity": 0.5}], "sampling": ["equal"]}
    whole = spec(bloom, corpus, held_out, microbatch=6, evaluation={})
    auto = whole.model_copy(update={"grid": one, "layout": validated(LayoutSpec, {})})
    _, printed = run_sweep(auto, tmp_path)
    # Twelve segments in two microbatches, on twelve CPUs.
    assert "layout: 1 × 2 (stages × replicas), 1 thread(s) each, on cpu" in printed
    _, printed = run_sweep(auto, tmp_path)
    assert "layout: 1 × 2" in printed and "all runs are finished" in printed
    fewer = auto.model_copy(update={"layout": validated(LayoutSpec, {"replicas": 1})})
    with pytest.raises(InputError, match="was begun with replicas 2, now it is 1"):
        run_sweep(fewer, tmp_path)


def test_where_more_stages_are_asked_for_than_there_is_room_for_those_are_taken(
    swept: tuple[Path, SweepResult, str], bloom: Path, corpus: Path, held_out: Path
) -> None:
    _, printed = run_sweep(spec(bloom, corpus, held_out, stages=13), swept[0])
    assert "the cluster has room for 12 of 13 stages: going on with those" in printed
    assert "layout: 12 × 1" in printed and "nothing to compute" in printed


def test_where_nodes_are_lost_there_are_fewer_stages_but_never_fewer_replicas(
    ray_cluster: Cluster, tmp_path: Path
) -> None:
    def shrunk_to_cluster(stages: int, replicas: int) -> tuple[int, int]:
        layout = Resources(Layout(stages, replicas), Numerics("cpu", 1)).shrunk_to_cluster(print).layout
        return layout.stages, layout.replicas

    assert shrunk_to_cluster(12, 1) == (12, 1)
    assert shrunk_to_cluster(15, 1) == (12, 1)
    assert shrunk_to_cluster(5, 3) == (4, 3)
    with pytest.raises(InputError, match="has room for 12 of the 13 replicas of a stage"):
        shrunk_to_cluster(1, 13)


def checkpoint_bits(out: Path) -> dict[str, str]:
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.glob("tiny/runs/*/checkpoint/*.safetensors"))
    }


@pytest.mark.slow
def test_a_killed_stage_costs_no_bit_and_no_metric_and_a_run_that_cannot_be_written_fails_alone(
    swept: tuple[Path, SweepResult, str], bloom: Path, corpus: Path, held_out: Path, tmp_path: Path
) -> None:
    undisturbed, _, _ = swept
    runs = tmp_path / "tiny" / "runs"
    (runs / LABELS[0] / "blocks" / "block-00001.safetensors").mkdir(parents=True)
    killer = kill_a_stage_after(runs, f"{LABELS[2]}/blocks/block-00000.safetensors")
    result, printed = run_sweep(spec(bloom, corpus, held_out), tmp_path)
    killer.join()
    assert "starting the stages anew" in printed
    assert list(result.failed) == [LABELS[0]]
    assert "Is a directory" in result.failed[LABELS[0]]
    kept = {path: bits for path, bits in checkpoint_bits(undisturbed).items() if LABELS[0] not in path}
    assert checkpoint_bits(tmp_path) == kept
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    tracked = client.search_runs([client.get_experiment_by_name("tiny").experiment_id])
    statuses = {run.info.run_name: run.info.status for run in tracked}
    assert statuses == {"tiny": "FAILED", LABELS[0]: "FAILED"} | dict.fromkeys(LABELS[1:], "FINISHED")
    for run in tracked:
        if run.info.run_name in LABELS[1:]:
            history = client.get_metric_history(run.info.run_id, "block/seconds")
            assert sorted(one.step for one in history) == [0, 1, 2, 3]
