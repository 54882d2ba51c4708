"""What other commands make of the runs of a finished sweep."""

import io
import json
import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient
from rich.console import Console
from typer.testing import CliRunner

from mbs_ray.cli import app
from mbs_ray.cluster.cluster_options import ClusterOptions
from mbs_ray.driver.conclusion import SweepResult
from mbs_ray.driver.evaluate import TextQuestion, evaluate
from mbs_ray.driver.progress import Progress
from mbs_ray.errors import InputError
from mbs_ray.evaluation.metric_names import INCREASE, MetricNames
from mbs_ray.evaluation.perplexity import stored_interval
from mbs_ray.report.compare import compare_runs, compare_with_dense
from mbs_ray.run.spec import EvaluationSpec
from mbs_ray.run.sweep_spec import validated
from mbs_ray.tracking.replay import track_runs
from mbs_ray.tracking.views import own_views
from tests.support.tiny_sweep import LABELS


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
    assert dict(track_runs(one, uri)) == {LABELS[2]: True, "tiny": True}
    assert dict(track_runs(out / "tiny", uri)) == dict.fromkeys([*LABELS, "tiny"], True)
    there, here = MlflowClient(uri), MlflowClient(f"sqlite:///{out / 'mlflow.db'}")
    metrics, notes = {}, {}
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
        notes[client] = {run.info.run_name: run.data.tags["mlflow.note.content"] for run in children}
    assert metrics[there] == metrics[here] and notes[there] == notes[here]
    named = [
        {
            run.info.run_name: {one.path for one in client.list_artifacts(run.info.run_id)}
            for run in client.search_runs([client.get_experiment_by_name("tiny").experiment_id])
            if "sampling" in run.data.tags
        }
        for client in (here, there)
    ]
    assert named[0] == named[1] and "reports" in named[1][LABELS[0]]
    views, files = zip(*(shown(client) for client in (here, there)), strict=True)
    assert views[0] == views[1] and [name for name, _ in views[1]] == ["tiny-bloom"]
    assert files[0] == files[1] and "report.html" in files[1] and "figures/allocations.png" in files[1]
    with pytest.raises(InputError, match="neither the folder of a run nor that of a sweep"):
        list(track_runs(out, uri))


def shown(client: MlflowClient) -> tuple[list[tuple[str, str]], set[str]]:
    """What MLflow shows of the sweep beside its runs: the views of its models, and its own files."""
    experiment = client.get_experiment_by_name("tiny")
    (sweep,) = client.search_runs([experiment.experiment_id], "tags.`mbs.kind` = 'sweep'")
    files = {file.path for at in ("", "figures") for file in client.list_artifacts(sweep.info.run_id, at)}
    return own_views(experiment.tags), files
