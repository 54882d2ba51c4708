"""A sweep that is begun again, on other nodes, with other fields, or after a death."""

import hashlib
from pathlib import Path

import pandas as pd
import pytest
import yaml
from mlflow import MlflowClient
from ray.cluster_utils import Cluster
from typer.testing import CliRunner

from mbs_ray.cli import app
from mbs_ray.cluster.layout import Layout
from mbs_ray.cluster.resources import Resources
from mbs_ray.driver.conclusion import SweepResult
from mbs_ray.errors import InputError
from mbs_ray.run.numerics import Numerics
from mbs_ray.run.sweep_spec import LayoutSpec, validated
from tests.support.stages import kill_a_stage_after
from tests.support.sweeps import run_sweep
from tests.support.tiny_sweep import LABELS, tiny_sweep


def test_the_same_command_again_computes_nothing_and_doubles_nothing(
    swept: tuple[Path, SweepResult, str], bloom: Path, corpus: Path, held_out: Path
) -> None:
    out, result, _ = swept
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    facts = {path: path.read_bytes() for path in out.glob("tiny/runs/*/run.json")}
    again, printed = run_sweep(tiny_sweep(bloom, corpus, held_out, stages=1), out)
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
    sweep = tiny_sweep(bloom, corpus, held_out).model_dump(mode="json", exclude={"run", "nvme_path"})
    (tmp_path / "tiny.yaml").write_text(
        yaml.safe_dump({**sweep, **tiny_sweep(bloom, corpus, held_out).run}, sort_keys=False)
    )
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
        run_sweep(tiny_sweep(bloom, corpus, held_out, **changes), out)


def test_another_first_evaluation_set_is_refused_since_its_metrics_have_no_set_in_their_names(
    swept: tuple[Path, SweepResult, str], bloom: Path, corpus: Path, held_out: Path
) -> None:
    out, _, _ = swept
    turned = dict(reversed(tiny_sweep(bloom, corpus, held_out).run["evaluation"].items()))
    with pytest.raises(InputError, match="was begun with evaluation set 'held-out' first, now 'all' is; keep"):
        run_sweep(tiny_sweep(bloom, corpus, held_out, evaluation=turned), out)


def test_a_changed_method_under_the_same_label_is_refused_by_name(
    swept: tuple[Path, SweepResult, str], bloom: Path, corpus: Path, held_out: Path
) -> None:
    out, _, _ = swept
    sweep = tiny_sweep(bloom, corpus, held_out)
    # Labels round: what they leave out is refused by the signature.
    sparser = {"method": [{"name": "sparsegpt", "sparsity": 0.50000001}], "sampling": ["equal"]}
    with pytest.raises(InputError, match=r"was begun with method\.sparsity 0\.5, now it is 0\.50000001"):
        run_sweep(sweep.model_copy(update={"grid": sparser}), out)


@pytest.mark.slow
def test_a_single_run_is_shared_by_replicas_and_goes_on_with_as_many(
    ray_cluster: Cluster, bloom: Path, corpus: Path, held_out: Path, tmp_path: Path
) -> None:
    one = {"method": [{"name": "sparsegpt", "sparsity": 0.5}], "sampling": ["equal"]}
    whole = tiny_sweep(bloom, corpus, held_out, microbatch=6, evaluation={})
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
    _, printed = run_sweep(tiny_sweep(bloom, corpus, held_out, stages=13), swept[0])
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
    result, printed = run_sweep(tiny_sweep(bloom, corpus, held_out), tmp_path)
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
