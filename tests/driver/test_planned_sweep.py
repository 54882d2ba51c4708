"""Sweeps say their plan, start nothing that does not fit, and leave only metrics where that is asked for."""

import io
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster
from rich.console import Console
from typer.testing import CliRunner

from mbs_ray.cli import app
from mbs_ray.driver.progress import Progress
from mbs_ray.driver.sweep import conduct
from mbs_ray.errors import InputError
from mbs_ray.plan.sweep_plan import plan_sweep
from mbs_ray.run.sweep_spec import SweepSpec, validated
from tests.support.models import HELD_OUT, write_corpus
from tests.support.sweeps import run_sweep

RUN = "wanda-50-equal"


def _spec(bloom: Path, corpus: Path, held_out: Path, **changes: object) -> SweepSpec:
    run = {
        "model": str(bloom),
        "corpus": str(corpus),
        "languages": ["en", "sw"],
        "method": "wanda",
        "sampling": "equal",
        "segments": 4,
        "sequence_length": 32,
        "evaluation": {"held-out": {"corpus": str(held_out), "segments": 2}},
        "keep": "metrics",
    }
    content = {"name": "planned", "run": {**run, **changes}, "layout": {"stages": 1}, "threads": 1}
    return validated(SweepSpec, {**content, "grid": {"method": ["wanda"], "sampling": ["equal"]}})


def _run(spec: SweepSpec, out: Path) -> tuple[dict[str, float], str]:
    result, printed = run_sweep(spec, out)
    assert not result.failed
    (table,) = result.tables.values()
    return table.iloc[:, 0].to_dict(), printed


def test_only_metrics_are_kept_and_weights_come_back_when_they_are_wanted(
    ray_cluster: Cluster, bloom: Path, corpus: Path, tmp_path: Path
) -> None:
    held_out = write_corpus(tmp_path / "held-out", 25, first=HELD_OUT)
    out, run = tmp_path / "out", tmp_path / "out" / "planned" / "runs" / RUN
    first, said = _run(_spec(bloom, corpus, held_out), out)
    assert "plan: a stage needs" in said
    assert [path for path in run.rglob("*") if path.suffix == ".safetensors"] == []
    assert len(list((run / "blocks").glob("*.json"))) == 4
    for command in (["verify", str(run)], ["export", str(run), "--format", "safetensors"]):
        refused = CliRunner().invoke(app, command)
        assert refused.exit_code == 2
        assert "kept its metrics alone; give its mbs command again with keep: checkpoint" in refused.output
    again, said = _run(_spec(bloom, corpus, held_out), out)
    assert "nothing to compute" in said
    assert again == first
    whole, said = _run(_spec(bloom, corpus, held_out, keep="checkpoint"), out)
    assert "nothing to compute" not in said
    assert whole == first
    assert CliRunner().invoke(app, ["verify", str(run)]).exit_code == 0
    # What was kept once is not taken away by a later keep: metrics.
    _run(_spec(bloom, corpus, held_out), out)
    assert CliRunner().invoke(app, ["verify", str(run)]).exit_code == 0


def test_a_plan_is_of_the_nodes_that_ray_has_and_of_rates_that_were_measured_or_given(
    ray_cluster: Cluster, bloom: Path, corpus: Path, tmp_path: Path
) -> None:
    spec = _spec(bloom, corpus, write_corpus(tmp_path / "held-out", 25, first=HELD_OUT))
    given = plan_sweep(spec, None, "auto", None, {"forward": 1e9, "disk": None}, measure=False, out=tmp_path)
    nodes = [node for node in ray.nodes() if node["Alive"]]
    assert sorted(node.cpus for node in given.hardware.nodes) == sorted(node["Resources"]["CPU"] for node in nodes)
    assert given.rates.forward == 1e9 and given.rates.source == "as given"
    measured = plan_sweep(spec, None, None, 1, {}, measure=True, out=tmp_path)
    assert len(measured.hardware.nodes) == 1
    assert measured.rates.source not in (
        given.rates.source,
        plan_sweep(spec, None, None, 1, {}, False, None).rates.source,
    )
    assert not measured.problems and measured.wall > 0


def test_a_sweep_that_cannot_fit_is_refused_before_any_text_is_drawn(
    ray_cluster: Cluster, bloom: Path, corpus: Path, tmp_path: Path
) -> None:
    # 128 bytes of activations for a token of this model.
    spec = _spec(bloom, corpus, corpus, segments=10**9, allow_repeat=True, evaluation={})
    with pytest.raises(InputError, match=r"stage 1 needs .* of host memory .* are there; no layout .*--force starts"):
        conduct(spec, tmp_path / "out", None, Progress(Console(file=io.StringIO())))
    assert not (tmp_path / "out" / "segments").exists()
    assert not (tmp_path / "out" / "planned" / "runs").exists()


def test_mbs_plan_needs_a_configuration_and_no_cluster(bloom: Path, tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text(
        "name: s\nmodel: bigscience/bloom\ncorpus: nowhere\nsegments: 256\nmethod: sparsegpt\n"
        "evaluation: {x: {corpus: nowhere, segments: 8}}\ngrid: {sampling: [equal, proportional]}\n"
    )
    described = ["--gpus", "8", "--gpu-memory", "80GB", "--host-memory", "1TB"]
    shown = CliRunner().invoke(app, ["plan", str(file), *described], env={"COLUMNS": "200"})
    assert shown.exit_code == 0, shown.output
    # Both runs leave 70 blocks of 12 · 14,336² weights in bfloat16; the embedding is there once.
    leave = (2 * 70 * 12 * 14336**2 + 250_880 * 14336) * 2 / 2**30
    for part in ("moments", "12.2 GiB", "layout 2 × 4"):
        assert part in shown.output
    assert float(shown.output.partition("results: ")[2].split()[0]) == pytest.approx(leave, rel=1e-3)
    small = CliRunner().invoke(app, ["plan", str(file), "--gpus", "2", "--host-memory", "64GB", "--nvme", "1TB"])
    assert small.exit_code == 0
    refused = CliRunner().invoke(app, ["plan", str(file), "--gpus", "8", "--gpu-memory", "24GB"])
    assert refused.exit_code == 1
    assert "does not fit: stage 1" in refused.output
    both = CliRunner().invoke(app, ["plan", str(file), "--gpus", "8", "--cluster", "cluster.yaml"])
    assert both.exit_code == 2
    assert "give one of --address, --cluster and --gpus" in both.output
