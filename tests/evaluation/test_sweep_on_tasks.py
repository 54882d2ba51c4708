"""A whole sweep on tasks, on the real Ray: every checkpoint once, dense first; file, page and MLflow say the same."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from mlflow import MlflowClient
from ray.cluster_utils import Cluster
from rich.console import Console
from scipy.stats import binomtest
from typer.testing import CliRunner

from mbs_ray.cli import app
from mbs_ray.cluster.cluster_options import ClusterOptions
from mbs_ray.driver.evaluate import evaluate
from mbs_ray.driver.evaluate_sweep import CheckpointScores, evaluate_sweep
from mbs_ray.driver.evaluate_tasks import TaskQuestion
from mbs_ray.driver.progress import Progress
from mbs_ray.errors import InputError
from mbs_ray.evaluation.task_items import TaskItem, read_items
from mbs_ray.report.run_results import read_sweep
from mbs_ray.report.task_tables import task_tables
from mbs_ray.run.directory import RunDirectory
from mbs_ray.run.sweep_checkpoints import is_sweep
from mbs_ray.run.sweep_spec import SweepSpec, validated
from tests.support.stages import WARM
from tests.support.sweeps import predrawn, prepared_runs, run_sweep

pytestmark = pytest.mark.usefixtures("own_tasks_only")
LABELS = ["magnitude-50-equal", "magnitude-90-equal"]
TASKS, SHOTS = ["river", "ford_en"], 1


@pytest.fixture(scope="module")
def out(ray_cluster: Cluster, bloom: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished sweep ``tiny``, with two runs more: one kept its metrics alone, one is not finished."""
    out = tmp_path_factory.mktemp("out")
    model = shutil.copytree(bloom, out / "models" / "tiny-bloom")
    run = {"model": str(model), "corpus": str(corpus), "languages": "en,sw", "sampling": "equal"}
    method = [{"name": "magnitude", "sparsity": share} for share in (0.5, 0.9)]
    sweep = validated(
        SweepSpec,
        {
            "name": "tiny",
            "run": {**run, "segments": 2, "sequence_length": 32},
            "grid": {"method": method},
            "layout": {"stages": 1, "replicas": 1},
            "threads": 1,
        },
    )
    predrawn(prepared_runs(sweep, out), out)
    result, _ = run_sweep(sweep, out)
    assert result.failed == {} and [one.path.name for one in RunDirectory.all_of(out / "tiny")] == LABELS
    runs = out / "tiny" / "runs"
    for name in ("kept-metrics", "not-finished"):
        shutil.copytree(runs / LABELS[0], runs / name)
    shutil.rmtree(runs / "kept-metrics" / "checkpoint")
    finished = json.loads((runs / "kept-metrics" / "result.json").read_text())
    (runs / "kept-metrics" / "result.json").write_text(json.dumps({**finished, "keep": "metrics"}))
    (runs / "not-finished" / "result.json").unlink()
    return out


@pytest.fixture(scope="module")
def scored(out: Path, task_folder: Path) -> tuple[list[CheckpointScores], str]:
    return score(out, task_folder)


def score(out: Path, tasks: Path) -> tuple[list[CheckpointScores], str]:
    """What was found of the sweep in ``out``, and all that was printed."""
    text = io.StringIO()
    found = evaluate_sweep(
        out / "tiny",
        tasks=TaskQuestion(TASKS, SHOTS, include_path=tasks),
        compute_dtype="float32",
        cluster=ClusterOptions(stages=1, replicas=1, threads=1),
        out=out,
        progress=Progress(Console(file=text, width=300)),
        pool=WARM,
    )
    return found, text.getvalue()


def files(out: Path) -> dict[str, int]:
    """When each file of answers was written."""
    return {str(one.relative_to(out)): one.stat().st_mtime_ns for one in out.glob("evaluated/*/items.parquet")}


def test_the_dense_model_and_every_checkpoint_are_scored_on_the_same_questions(
    out: Path, scored: tuple[list[CheckpointScores], str]
) -> None:
    found, printed = scored
    assert [(one.label, one.dense, one.anew) for one in found] == [
        ("tiny-bloom", True, True), *((label, False, True) for label in LABELS)
    ]  # fmt: skip
    for number, label in enumerate(["tiny-bloom", *LABELS], 1):
        assert f"model {number} of 3: {label}\n" in printed
        assert f"{label}: done in" in printed
    left_out = [line for line in printed.splitlines() if line.startswith("left out: ")]
    assert len(left_out) == 2
    assert "runs/kept-metrics: the run kept its metrics alone" in left_out[0]
    assert "runs/not-finished: the run is not finished" in left_out[1]
    dense, *runs = (read_items(one.result.file.with_name("items.parquet")) for one in found)
    for items in runs:
        assert [(one.key, one.question) for one in items] == [(one.key, one.question) for one in dense]
        assert items != dense
    # Examples before a question are the same for every model, and the models are not.
    content = [json.loads(one.result.file.read_text()) for one in found]
    assert len({one["questions"] for one in content}) == 1 and len({one["fingerprint"] for one in content}) == 3


def expected(dense: list[TaskItem], own: list[TaskItem]) -> dict[str, float]:
    """McNemar's test of each task and language, by scipy's binomial test, and Holm by his own words."""
    metrics: dict[str, float] = {}
    languages = ("en", "zh-Hans", "sw")
    by_task = [*(("river", code) for code in languages), ("ford", "en")]
    for kind in (by_task, [("all", code) for code in languages], [("all", "all")]):
        values: dict[str, float] = {}
        for task, code in kind:
            pairs = [
                (a.score, b.score, (a.task, a.item))
                for a, b in zip(dense, own, strict=True)
                if task in ("all", a.task) and code in ("all", a.language)
            ]
            lost, won = sum(a > b for a, b, _ in pairs), sum(a < b for a, b, _ in pairs)
            name = f"{task}/{code}"
            metrics |= {f"only_dense/{name}": lost, f"only_compressed/{name}": won}
            if code == "all":
                sums = pd.Series([b - a for a, b, _ in pairs]).groupby([str(number) for *_, number in pairs]).sum()
                lost, won = int((sums < 0).sum()), int((sums > 0).sum())
            values[name] = binomtest(lost, lost + won).pvalue if lost + won else 1.0
        metrics |= {f"mcnemar_p/{name}": p for name, p in values.items()}
        for name, p in values.items():
            before = [one for one in sorted(values.values()) if one <= p]
            adjusted = max((len(values) - place) * one for place, one in enumerate(before))
            metrics[f"mcnemar_p_holm/{name}"] = min(1.0, adjusted)
    return metrics


def evaluations(out: Path) -> tuple[MlflowClient, dict[str, Any]]:
    client = MlflowClient(f"sqlite:///{out}/mlflow.db")
    experiment = client.get_experiment_by_name("evaluate")
    return client, {run.data.tags["model"]: run for run in client.search_runs([experiment.experiment_id])}


def test_mlflow_has_mcnemars_test_of_every_run_and_knows_which_run_it_was(
    out: Path, scored: tuple[list[CheckpointScores], str]
) -> None:
    client, runs = evaluations(out)
    found = {one.label: one.result for one in scored[0]}
    assert set(runs) == set(found) == {"tiny-bloom", *LABELS}
    answers = {label: read_items(one.file.with_name("items.parquet")) for label, one in found.items()}
    kinds = ("mcnemar_p/", "mcnemar_p_holm/", "only_dense/", "only_compressed/")
    for label in LABELS:
        run = runs[label]
        own = {name: value for name, value in run.data.metrics.items() if name.startswith(kinds)}
        assert own == pytest.approx(expected(answers["tiny-bloom"], answers[label]))
        assert sum(own[f"only_dense/all/{code}"] + own[f"only_compressed/all/{code}"] for code in ("en", "sw")) > 0
        child = client.get_run(run.data.tags["mbs.run_id"])
        assert child.data.tags["mbs.checkpoint"] == str(out / "tiny" / "runs" / label / "checkpoint")
        assert {"comparison-of-tasks.csv", "tasks.json", "items.parquet"} == {
            one.path for one in client.list_artifacts(run.info.run_id)
        }
    assert not [name for name in runs["tiny-bloom"].data.metrics if name.startswith(kinds)]
    assert "mbs.run_id" not in runs["tiny-bloom"].data.tags


def test_the_page_has_a_table_of_every_task_and_a_copy_elsewhere_has_the_same(
    out: Path, scored: tuple[list[CheckpointScores], str], tmp_path: Path
) -> None:
    found = {one.label: one.result for one in scored[0]}
    (own,) = task_tables(read_sweep(out / "tiny").runs)
    assert own.dense and [name for name, _, _ in own.tables] == ["river", "ford", "all tasks"]
    for task, accuracy, bits in own.tables:
        assert [title for title, _ in accuracy.columns] == ["the dense model", *LABELS]
        assert bits is not None and bits.columns == accuracy.columns
        for code, _, cells in accuracy.rows:
            for label, cell in zip(["tiny-bloom", *LABELS], cells, strict=True):
                scores = [one for one in found[label].scores if code in (one.language, "all")]
                scores = [one for one in scores if task in (one.task, "all tasks")]
                right = sum(one.accuracy * one.documents for one in scores)
                assert cell.value == pytest.approx(100 * right / sum(one.documents for one in scores))
        for code, _, cells in bits.rows if task != "all tasks" else ():
            for label, cell in zip(["tiny-bloom", *LABELS], cells, strict=True):
                (score_of,) = [one for one in found[label].scores if (one.task, one.language) == (task, code)]
                assert cell.value == pytest.approx(score_of.bits_per_byte)
    assert [code for code, _, _ in own.tables[-1][1].rows] == ["en", "zh-Hans", "sw", "all"]
    moved = tmp_path / "elsewhere"
    shutil.copytree(out / "tiny", moved / "tiny")
    shutil.copytree(out / "evaluated", moved / "evaluated")
    assert task_tables(read_sweep(moved / "tiny").runs) != []
    assert [one.tables for one in task_tables(read_sweep(moved / "tiny").runs)] == [own.tables]
    (moved / "tiny").rename(moved / "other-name")
    assert [one.tables for one in task_tables(read_sweep(moved / "other-name").runs)] == [own.tables]
    result = CliRunner().invoke(app, ["report", str(moved / "other-name")])
    assert result.exit_code == 0, result.output
    assert "river: accuracy in percent" in (moved / "other-name" / "report.html").read_text()


def test_only_what_is_missing_is_scored_again(
    out: Path, scored: tuple[list[CheckpointScores], str], task_folder: Path
) -> None:
    before, starts = files(out), WARM.starts
    found, printed = score(out, task_folder)
    assert [one.anew for one in found] == [False] * 3
    assert files(out) == before and WARM.starts == starts
    assert "model 3 of 3: magnitude-90-equal, scored before\n" in printed
    assert [one.result for one in found] == [one.result for one in scored[0]]
    # What a command leaves that was killed while it wrote the answers of the last run.
    found[-1].result.file.unlink()
    again, _ = score(out, task_folder)
    assert [one.anew for one in again] == [False, False, True]
    assert again[-1].result == scored[0][-1].result
    client, runs = evaluations(out)
    assert len(runs) == 3
    for run in runs.values():
        assert len(client.get_metric_history(run.info.run_id, "acc/mean/all")) == 1


def test_a_sweep_that_was_moved_is_not_scored_again_and_other_questions_are(
    out: Path, scored: tuple[list[CheckpointScores], str], task_folder: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "elsewhere"
    for name in ("tiny", "evaluated", "segments"):
        shutil.copytree(out / name, moved / name)
    for file in moved.glob("evaluated/*/tasks.json"):
        content = json.loads(file.read_text())
        # As if the sweep had come from a folder that is no more; the dense model is where it was.
        if "/runs/" in content["model"]:
            file.write_text(json.dumps({**content, "model": content["model"].replace(str(out), "/gone")}))
    before = files(moved)
    found, _ = score(moved, task_folder)
    assert [one.anew for one in found] == [False] * 3 and files(moved) == before
    for one in found[1:]:
        assert json.loads(one.result.file.read_text())["model"].startswith(str(moved))
        assert one.result.paired is not None
    # The same names, and another question under one of them.
    own = shutil.copytree(task_folder, tmp_path / "tasks")
    for file in own.glob("*.yaml"):
        file.write_text(file.read_text().replace(str(task_folder), str(own)))
    data = own / "river_sw.jsonl"
    data.write_text(data.read_text().replace('"label": 1', '"label": 2'))
    starts = WARM.starts
    assert [one.anew for one in score(moved, own)[0]] == [True] * 3
    assert WARM.starts <= starts + 1, "three models of one layout share their stages"


def test_a_checkpoint_alone_is_compared_with_its_dense_model_too(
    out: Path, scored: tuple[list[CheckpointScores], str], task_folder: Path, tmp_path: Path
) -> None:
    results = Path(shutil.copytree(out / "evaluated", tmp_path / "evaluated")).parent
    last = scored[0][-1].result
    shutil.rmtree(results / "evaluated" / last.file.parent.name)
    found = evaluate(
        str(out / "tiny" / "runs" / LABELS[-1] / "checkpoint"),
        revision=None,
        text=None,
        tasks=TaskQuestion(TASKS, SHOTS, include_path=task_folder),
        compute_dtype="float32",
        cluster=ClusterOptions(stages=1, replicas=1, threads=1),
        out=results,
        progress=Progress(Console(quiet=True)),
        pool=WARM,
    )
    assert found.tasks == last._replace(file=results / "evaluated" / last.file.parent.name / "tasks.json")


def command(*words: object) -> Any:
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, ["evaluate", *map(str, words)])


def test_the_command_prints_a_row_for_each_model(
    out: Path, scored: tuple[list[CheckpointScores], str], task_folder: Path
) -> None:
    asked = ["--tasks", ",".join(TASKS), "--shots", SHOTS, "--include-path", task_folder]
    layout = ["--stages", 1, "--replicas", 1, "--threads", 1]
    result = command(out / "tiny", *asked, *layout, "--compute-dtype", "float32", "--out", out)
    assert result.exit_code == 0, result.output
    for one in scored[0]:
        (row,) = [line for line in result.stdout.splitlines() if line.startswith(f"│ {one.label}")]
        if one.result.paired is not None:
            assert f"{one.result.paired[-1].p:.3g}" in row
    assert "scored before" in result.stdout and "mbs report" in result.stdout


def test_what_cannot_be_scored_is_refused_in_one_line(
    out: Path, corpus: Path, task_folder: Path, tmp_path: Path
) -> None:
    tasks = ("--tasks", "river", "--include-path", task_folder, "--out", out)
    for words, said in (
        ((out / "tiny", "--corpus", corpus, *tasks), "its own evaluation has scored on text; give --tasks alone"),
        ((out / "tiny", "--corpus", corpus, "--out", out), "give --tasks alone"),
        ((out / "tiny", "--revision", "main", *tasks), "--revision main: a sweep names the revisions"),
    ):
        result = command(*words)
        assert result.exit_code == 2 and result.stderr.count("\n") == 1 and said in result.stderr
    alone = tmp_path / "alone" / "tiny"
    for name in ("kept-metrics", "not-finished"):
        shutil.copytree(out / "tiny" / "runs" / name, alone / "runs" / name)
    with pytest.raises(InputError, match="no run of this sweep has a checkpoint; finish one"):
        score(alone.parent, task_folder)


def test_a_model_with_a_folder_of_logs_beside_it_is_no_sweep(bloom: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(bloom, tmp_path / "trained"))
    (model / "runs" / "events").mkdir(parents=True)
    (tmp_path / "runs").mkdir()
    assert not is_sweep(model) and is_sweep(tmp_path)


def test_another_dense_model_in_the_place_of_the_old_one_is_refused(
    out: Path, llama: Path, task_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(out / "tiny", tmp_path / "tiny")
    for name in LABELS:
        spec = tmp_path / "tiny" / "runs" / name / "spec.json"
        spec.write_text(json.dumps({**json.loads(spec.read_text()), "model": str(llama)}))
    with pytest.raises(InputError, match=r"tiny-llama: is not the model any more that .*magnitude-50-equal was"):
        score(tmp_path, task_folder)
