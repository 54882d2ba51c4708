"""Sweeps with dense statistics: the same bits alone or in a grid, in either layout of the moments, killed or not."""

import hashlib
import json
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from ray.cluster_utils import Cluster

from mbs_ray.cluster.layout import Layout
from mbs_ray.cluster.resources import Resources
from mbs_ray.compression.block_report import read_block_reports
from mbs_ray.driver import pools as sweep_statistics
from mbs_ray.driver.pools import refuse_moments_without_room
from mbs_ray.driver.run_card import run_facts
from mbs_ray.driver.sweep_jobs import SweepJobs
from mbs_ray.errors import InputError
from mbs_ray.run.numerics import Numerics
from mbs_ray.run.signature import forward_fields, signature
from mbs_ray.run.sweep_folders import SweepFolders
from mbs_ray.run.sweep_spec import SweepSpec, validated
from tests.support.engine import run_here
from tests.support.models import HELD_OUT, write_corpus
from tests.support.stages import kill_a_stage_after
from tests.support.sweeps import predrawn, prepared_runs, run_sweep

WANDA, SPARSE = {"name": "wanda", "sparsity": 0.5}, {"name": "sparsegpt", "sparsity": 0.5}
ENGLISH = {"name": "monolingual", "language": "en"}
DENSE = {"mode": "dense", "segments_per_language": 5}
BLOCKS = [f"block-0000{index}.safetensors" for index in range(4)]
LABELS = [
    f"{method}-50-{sampling}" for method in ("wanda", "sparsegpt") for sampling in ("monolingual-en", "proportional")
]


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("held-out"), 25, first=HELD_OUT)


@pytest.fixture(scope="module")
def run(bloom: Path, corpus: Path, held_out: Path) -> dict[str, Any]:
    """What all runs below have in common."""
    return {
        "model": str(bloom),
        "corpus": str(corpus),
        "languages": ["en", "fr", "sw", "hi"],
        "segments": 12,
        "sequence_length": 32,
        "microbatch": 2,
        "evaluation": {"held-out": {"corpus": str(held_out), "segments": 3}},
    }


def spec(
    run: dict[str, Any],
    stages: int,
    statistics: Any,
    methods: tuple[dict, ...] = (WANDA, SPARSE),
    samplings: tuple[Any, ...] = (ENGLISH, "proportional"),
    name: str = "tiny",
    **changes: Any,
) -> SweepSpec:
    content = {
        "name": name,
        "run": {**run, "statistics": statistics, **changes},
        "grid": {"method": list(methods), "sampling": list(samplings)},
        "layout": {"stages": stages},
        "threads": 1,
    }
    return validated(SweepSpec, content)


def bits(out: Path, name: str = "tiny") -> dict[str, str]:
    return {
        str(path.relative_to(out / name / "runs")): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.glob(f"{name}/runs/*/blocks/*.safetensors"))
    }


def moments(out: Path) -> dict[str, list[str]]:
    """Files by folder; a killed stage may leave an unfinished one beside them."""
    return {
        folder.name: sorted(path.name for path in folder.glob("block-*.safetensors"))
        for folder in (out / "statistics").iterdir()
    }


def prepared(sweep: SweepSpec, out: Path, stages: int) -> SweepJobs:
    """The jobs of a sweep, its text drawn without Ray into where the sweep would draw it."""
    runs, resources = prepared_runs(sweep, out), Resources(Layout(stages), Numerics("cpu", 1))
    return SweepJobs(SweepFolders(out, sweep.name), resources, predrawn(runs, out), runs)


def claim(jobs: SweepJobs) -> None:
    """Make the run directories of the jobs, as a sweep does before it begins."""
    for run in jobs.runs:
        numerics, layout = jobs.resources.numerics, jobs.resources.layout
        facts = run_facts(run, forward_fields(run, numerics), layout)
        jobs.folders.run(run.label).claim(signature(run, numerics, layout.replicas), facts)


def solve_here(sweep: SweepSpec, out: Path, stages: int) -> list[str]:
    """All runs of a sweep without Ray; the keys of the jobs that collect statistics."""
    jobs = prepared(sweep, out, stages)
    claim(jobs)
    collecting = jobs.collecting_jobs()
    run_here(stages, [*collecting, *(jobs.run_job(run) for run in jobs.runs)])
    return [job.key for job in collecting]


@pytest.fixture(scope="module")
def solved(run: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two methods × two samplings on two stages: fewer samplings than languages, so one sum for each is kept."""
    out = tmp_path_factory.mktemp("out")
    (key,) = solve_here(spec(run, 2, DENSE), out, 2)
    assert key.startswith("statistics-tiny-bloom-seed0-")
    # Of wanda and of sparsegpt: English, and the weighted sum of four languages.
    assert list(moments(out).values()) == [BLOCKS] * 4
    return out


def test_one_run_alone_has_the_bits_it_has_in_the_grid_and_leaves_moments_for_other_methods_and_sweeps(
    solved: Path, run: dict[str, Any], tmp_path: Path
) -> None:
    assert solve_here(spec(run, 1, DENSE, methods=(SPARSE,), samplings=("proportional",)), tmp_path, 1)
    assert bits(tmp_path) == {path: one for path, one in bits(solved).items() if path.startswith(LABELS[3])}
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("statistics/*/*")}
    assert len(before) == 4
    gptq = {"name": "gptq", "bits": 4}
    more = spec(run, 1, DENSE, (gptq,), ("proportional",), "more")
    assert solve_here(more, tmp_path, 1) == []
    assert len(bits(tmp_path, "more")) == 4
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("statistics/*/*")} == before
    # A run without a block to solve wants no moments, one that lacks a block wants them again.
    shutil.rmtree(tmp_path / "statistics")
    whole = bits(tmp_path, "more")
    assert prepared(more, tmp_path, 1).collecting_jobs() == []
    next(tmp_path.glob("more/runs/*/blocks/block-00002.safetensors")).unlink()
    assert solve_here(more, tmp_path, 1) and bits(tmp_path, "more") == whole


def test_weights_decide_and_what_each_language_loses_needs_moments_by_language(
    solved: Path, run: dict[str, Any], tmp_path: Path
) -> None:
    statistics = {**DENSE, "weights": "allocation"}
    solve_here(spec(run, 1, statistics, samplings=("proportional",), per_language=True), tmp_path, 1)
    own, of_shares = (
        {path: one for path, one in bits(out).items() if path.startswith(LABELS[3])} for out in (tmp_path, solved)
    )
    assert own.keys() == of_shares.keys() and own != of_shares
    # Diagonals for wanda, and full moments for sparsegpt and to measure both by: of four languages each.
    assert list(moments(tmp_path).values()) == [BLOCKS] * 8
    one, _ = prepared(spec(run, 1, None, samplings=("proportional", "equal"), methods=(SPARSE,)), tmp_path, 1).runs
    for label in (LABELS[1], LABELS[3]):
        for report in read_block_reports(tmp_path / "tiny" / "runs" / label / "blocks"):
            assert list(report.language_errors()) == ["en", "fr", "hi", "sw"]
            for linear in report.linears:
                weighed = sum(
                    one.allocation[error.language] / 12 * error.error
                    for error in report.layer_error
                    if error.linear == linear.name
                )
                assert linear.tokens == 4 * 5 * 32
                assert linear.loss is None or linear.loss == pytest.approx(2 * weighed / (5 * 32), rel=1e-3)


@pytest.mark.slow
def test_a_sweep_whose_stage_is_killed_after_the_first_moments_by_language_has_the_same_bits_and_tells_the_weights(
    ray_cluster: Cluster, solved: Path, run: dict[str, Any], tmp_path: Path
) -> None:
    shutil.copytree(solved / "segments", tmp_path / "segments")
    killer = kill_a_stage_after(tmp_path, "statistics/*/block-00001.safetensors")
    result, printed = run_sweep(spec(run, 1, {**DENSE, "stored": "languages"}), tmp_path)
    killer.join()
    assert not result.failed and "starting the stages anew" in printed
    assert bits(tmp_path) == bits(solved)
    # Four languages for either statistic.
    assert list(moments(tmp_path).values()) == [BLOCKS] * 8
    assert "weights monolingual-en (dense statistics, 5 segments of each language): en 100 %" in printed
    client = MlflowClient(result.tracking_uri)
    children = client.search_runs([client.get_experiment_by_name("tiny").experiment_id], "tags.`mbs.kind` = 'run'")
    assert {child.data.tags["statistics"] for child in children} == {"dense-5"}
    assert {child.data.params["statistics.weights"] for child in children} == {"shares"}
    for label in LABELS:
        directory = tmp_path / "tiny" / "runs" / label
        weights = json.loads((directory / "weights.json").read_text())
        assert sum(weights.values()) == pytest.approx(1)
        assert json.loads((directory / "allocation.json").read_text()) == dict.fromkeys(weights, 5)
        card = (directory / "checkpoint" / "README.md").read_text()
        assert all(f"| {code} | 5 | {100 * one:.3g} % |" in card for code, one in weights.items())
    assert "Weights of the languages in dense statistics" in (tmp_path / "tiny" / "report.html").read_text()


@pytest.mark.parametrize(
    ("statistics", "field"),
    [
        ("propagated", "calibration"),
        ({"segments_per_language": 6}, "calibration"),
        ({**DENSE, "weights": "allocation"}, r"weights\.en"),
    ],
)
def test_changed_statistics_are_refused_by_name(
    run: dict[str, Any], tmp_path: Path, statistics: Any, field: str
) -> None:
    jobs = prepared(spec(run, 1, DENSE, (SPARSE,), ("proportional",)), tmp_path, 1)
    claim(jobs)
    (before,), numerics = jobs.runs, jobs.resources.numerics
    directory = jobs.folders.run(before.label)
    directory.refuse_changed(signature(before, numerics, 1))
    (now,) = prepared(spec(run, 1, statistics, (SPARSE,), ("proportional",)), tmp_path, 1).runs
    with pytest.raises(InputError, match=f"was begun with {field}"):
        directory.refuse_changed(signature(now, numerics, 1))


def test_where_the_moments_go_there_must_be_room(
    run: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "free")(1000)
    monkeypatch.setattr(sweep_statistics.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(InputError, match=r"statistics: second moments need up to .* GiB in .*statistics, 0\.00 GiB"):
        jobs = prepared(spec(run, 1, DENSE), tmp_path, 1)
        refuse_moments_without_room(jobs.runs, jobs.folders, jobs.resources)


def test_a_sum_per_sampling_cannot_tell_what_each_language_loses(run: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"statistics\.stored: a sum per sampling keeps no moments of a language"):
        run_sweep(spec(run, 1, {"stored": "samplings"}, per_language=True), tmp_path)
