"""Sweeps that find the weights of languages by trial: on a cluster, killed in the middle, and again."""

import json
import shutil
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray.cluster_utils import Cluster

from mbs_ray.cluster.layout import Layout
from mbs_ray.cluster.offload import AUTO
from mbs_ray.cluster.sensitivity_task import measure_files
from mbs_ray.compression.block_report import read_block_reports
from mbs_ray.errors import InputError
from mbs_ray.run.sweep_spec import SweepSpec, validated
from tests.driver.test_sweep_dense import (
    DENSE,
    SPARSE,
    WANDA,
    bits,
    claim,
    prepared,
    spec,
)
from tests.support.engine import run_here
from tests.support.models import HELD_OUT, write_corpus
from tests.support.stages import ONE, WARM, kill_a_stage_after
from tests.support.sweeps import predrawn, prepared_runs, run_sweep

ADAPTIVE = {"name": "adaptive", "objective": "regret", "trials": 5, "sensitivity_segments": 2}
LANGUAGES = ["en", "fr", "hi", "sw"]


@pytest.fixture(scope="module")
def run(bloom: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    held_out = write_corpus(tmp_path_factory.mktemp("held-out"), 25, first=HELD_OUT)
    # Named as trials are: what a search takes for one must not hang on it.
    model = shutil.copytree(bloom, tmp_path_factory.mktemp("models") / "bloom-trial0-b")
    return {
        "model": str(model),
        "corpus": str(corpus),
        "languages": LANGUAGES,
        "sequence_length": 32,
        "microbatch": 2,
        "evaluation": {"held-out": {"corpus": str(held_out), "segments": 3}},
    }


def found(out: Path) -> dict[str, dict[str, Any]]:
    """What the searches of a sweep found, by the weights they chose for its runs."""
    runs = {path.parent.name: json.loads(path.read_text()) for path in out.glob("tiny/runs/*-adaptive-*/weights.json")}
    searches = [json.loads(path.read_text()) for path in out.glob("adaptive/*/found.json")]
    return {
        label: next(one for one in searches if one["trials"][one["best"]]["weights"] == weights)
        for label, weights in runs.items()
    }


def test_a_search_that_is_killed_finds_the_weights_that_make_a_plain_dense_run_and_finds_them_again(
    ray_cluster: Cluster, run: dict[str, Any], bloom: Path, tmp_path: Path
) -> None:
    sweep = spec(run, 2, DENSE, (WANDA, SPARSE), ("equal", ADAPTIVE))
    predrawn(prepared_runs(sweep, tmp_path), tmp_path)
    with WARM.lent(Layout(2), ONE, AUTO, print):
        starts = WARM.starts
    killer = kill_a_stage_after(tmp_path, "adaptive/*/trial-1/blocks/*.json")
    result, printed = run_sweep(sweep, tmp_path)
    killer.join()
    assert not result.failed and "starting the stages anew" in printed
    assert WARM.starts == starts + 1  # search and runs on the same stages; started once, after the kill
    assert "sparsegpt-50-adaptive-regret-5: trial" in printed and "of 5 has the least regret" in printed
    assert (
        printed.count("weights sparsegpt-50-adaptive-regret-5 (dense statistics, 5 segments of each language): en") == 1
    )

    searches = found(tmp_path)
    assert sorted(searches) == ["sparsegpt-50-adaptive-regret-5", "wanda-50-adaptive-regret-5"]
    assert {
        label: json.loads((tmp_path / "tiny" / "runs" / label / "search.json").read_text()) for label in searches
    } == (searches)
    # Every trial solved all blocks and left nothing of them.
    assert sorted(path.name for path in tmp_path.glob("adaptive/*/*")) == ["found.json"] * 2
    for search in searches.values():
        assert len(search["trials"]) == 5 and search["best"] == int(np.argmin(search["values"]))
        assert search["trials"][0]["weights"] == dict.fromkeys(LANGUAGES, 0.25)
        assert search["trials"][1]["weights"]["en"] > 0.6
        assert all(sum(trial["weights"].values()) == pytest.approx(1) for trial in search["trials"])

    # The first trial is the equal run: what it predicts, from the layer errors that such a run reports itself.
    jobs = prepared(spec(run, 1, DENSE, (WANDA, SPARSE), ("equal",), "by-hand", per_language=True), tmp_path, 1)
    claim(jobs)
    run_here(1, [*jobs.collecting_jobs(), *(jobs.run_job(one) for one in jobs.runs)])
    (pool,) = jobs.pools
    texts = {code: jobs.segments[one.fingerprint].path for code, one in pool.languages.items()}
    *_, known = measure_files(bloom, "float32", 2, texts, 2, ONE)
    assert isinstance(known, dict)
    for one in jobs.runs:
        increase = dict.fromkeys(LANGUAGES, 0.0)
        for report in read_block_reports(jobs.folders.run(one.label).blocks):
            for error in report.layer_error:
                s = known[report.block][error.linear][error.language]
                increase[error.language] += 0.5 * s * error.error / (5 * 32)
        search = searches[f"{one.spec.method.label}-adaptive-regret-5"]
        assert search["trials"][0]["increase"] == pytest.approx(increase, rel=1e-5)

    # A run with these weights is what the engine makes of them without any search.
    adaptive = {label: one for label, one in bits(tmp_path).items() if "adaptive" in label}
    jobs = prepared(spec(run, 1, DENSE, (WANDA, SPARSE), (ADAPTIVE,), "plain"), tmp_path, 1)
    weighed = [
        replace(one, weights={code: Fraction(chosen["weights"][code]) for code in LANGUAGES})
        for one in jobs.runs
        for chosen in [searches[one.label]["trials"][searches[one.label]["best"]]]
    ]
    plain = replace(jobs, runs=weighed)
    claim(plain)
    run_here(1, [plain.run_job(one) for one in weighed])
    assert bits(tmp_path, "plain") == adaptive

    # Found weights are not sought again; where they are lost, the same ones are found, or the runs would be refused.
    again, printed = run_sweep(sweep, tmp_path)
    assert not again.failed and "nothing to compute" in printed and "trial0" not in printed
    shutil.rmtree(tmp_path / "adaptive")
    again, printed = run_sweep(sweep, tmp_path)
    assert not again.failed and "nothing to compute" in printed and "trial0: done" in printed
    assert found(tmp_path) == searches


@pytest.mark.slow
def test_runs_that_differ_in_their_evaluation_alone_share_a_search(
    ray_cluster: Cluster, run: dict[str, Any], tmp_path: Path
) -> None:
    held_out = run["evaluation"]["held-out"]
    content = spec(run, 1, DENSE, (SPARSE,), ({**ADAPTIVE, "trials": 3},)).model_dump()
    content["grid"]["evaluation"] = [{"held-out": {**held_out, "segments": count}} for count in (1, 2)]
    sweep = validated(SweepSpec, content)
    predrawn(prepared_runs(sweep, tmp_path), tmp_path)
    result, printed = run_sweep(sweep, tmp_path)
    assert not result.failed and printed.count("trial0: done") == 1
    assert len(list(tmp_path.glob("adaptive/*/found.json"))) == 1 and len(found(tmp_path)) == 2
    one, other = (
        [path.read_bytes() for path in sorted(folder.glob("blocks/*.safetensors"))]
        for folder in sorted((tmp_path / "tiny" / "runs").iterdir())
    )
    assert one == other and len(one) == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"statistics": "propagated"}, "adaptive finds weights of languages, not numbers of segments; give the run"),
        ({"statistics": {"weights": "allocation"}}, "statistics: dense, with weights: shares"),
        ({"statistics": {"stored": "samplings"}}, r"statistics\.stored: .* take stored: languages"),
        ({"method": "magnitude"}, "method magnitude sees no text, so that no mixture of it matters"),
    ],
)
def test_what_an_adaptive_sampling_cannot_work_with_is_said_before_anything_starts(
    run: dict[str, Any], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    method = changes.pop("method", SPARSE)
    statistics = changes.pop("statistics", DENSE)
    with pytest.raises(InputError, match=message):
        run_sweep(spec(run, 1, statistics, (method,), (ADAPTIVE,)), tmp_path)
    assert not list(tmp_path.glob("*/*.parquet"))


def test_without_a_distribution_there_is_no_regret_but_the_worst_language_is(
    llama: Path, run: dict[str, Any], tmp_path: Path
) -> None:
    sweep = spec(run, 1, DENSE, (SPARSE,), ({**ADAPTIVE, "objective": "worst"}, ADAPTIVE), model=str(llama))
    with pytest.raises(InputError, match=r"sampling adaptive: .* other objectives of adaptive need none"):
        run_sweep(sweep, tmp_path)
    prepared(spec(run, 1, DENSE, (SPARSE,), ({**ADAPTIVE, "objective": "worst"},), model=str(llama)), tmp_path, 1)
