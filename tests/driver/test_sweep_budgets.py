"""Sweeps whose amounts are dealt out over linears: found by trial, killed in the middle, and what is refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ray.cluster_utils import Cluster
from transformers import AutoModelForCausalLM

from mbs_ray.cluster.layout import Layout
from mbs_ray.cluster.resources import Resources
from mbs_ray.cluster.sensitivity_task import measure_files
from mbs_ray.compression.block_report import read_block_reports
from mbs_ray.driver.budgets import pilots, untried
from mbs_ray.errors import InputError
from mbs_ray.languages.dealing import Tried, deal
from mbs_ray.model.checkpoint import Checkpoint
from mbs_ray.model.decoder import Decoder
from mbs_ray.run.export import export_run
from mbs_ray.run.sweep_folders import SweepFolders
from mbs_ray.run.sweep_spec import SweepSpec, validated
from tests.driver.test_sweep_dense import DENSE, SPARSE, WANDA, bits, claim, prepared
from tests.support.engine import run_here
from tests.support.models import HELD_OUT, write_corpus
from tests.support.stages import ONE, kill_a_stage_after
from tests.support.sweeps import predrawn, prepared_runs, run_sweep

INCREASE = {"rule": "increase", "segments_per_language": 5, "sensitivity_segments": 2}
LANGUAGES = ["en", "fr", "hi", "sw"]


@pytest.fixture(scope="module")
def run(bloom: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    held_out = write_corpus(tmp_path_factory.mktemp("held-out"), 25, first=HELD_OUT)
    return {
        "model": str(bloom),
        "corpus": str(corpus),
        "languages": LANGUAGES,
        "sampling": "equal",
        "segments": 12,
        "sequence_length": 32,
        "microbatch": 2,
        "evaluation": {"held-out": {"corpus": str(held_out), "segments": 3}},
    }


def spec(run: dict[str, Any], stages: int, grid: dict[str, Any], name: str = "tiny", **changes: Any) -> SweepSpec:
    content = {"name": name, "run": {**run, **changes}, "grid": grid, "layout": {"stages": stages}, "threads": 1}
    return validated(SweepSpec, content)


def drawn(sweep: SweepSpec, out: Path) -> SweepSpec:
    runs = prepared_runs(sweep, out)
    predrawn([*runs, *pilots(runs)], out)
    return sweep


def budget(out: Path, label: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / "tiny" / "runs" / label / "budget.json").read_text())
    return content


def test_amounts_are_found_by_trials_that_are_killed_and_make_the_run_that_the_engine_makes_of_them(
    ray_cluster: Cluster, run: dict[str, Any], bloom: Path, tmp_path: Path
) -> None:
    budgets = ["uniform", INCREASE, {**INCREASE, "objective": "worst"}, "ramp"]
    sweep = drawn(spec(run, 2, {"method": [SPARSE], "budget": budgets}), tmp_path)
    killer = kill_a_stage_after(tmp_path, "adaptive/tried-*/blocks/*.json")
    result, printed = run_sweep(sweep, tmp_path)
    killer.join()
    assert not result.failed and "starting the stages anew" in printed
    labels = [f"sparsegpt-50-equal-budget-{one}" for one in ("increase", "increase-worst", "ramp")]
    assert f"{labels[0]}: sparsity 0.4" in printed and "on average; predicted increase in nats per token" in printed
    # Three trials serve both objectives, and leave one file each.
    assert len(list(tmp_path.glob("adaptive/tried-*"))) == 3 == len(list(tmp_path.glob("adaptive/tried-*.json")))

    # The same by hand: three runs of dense statistics, their layer errors, the sensitivities.
    dense = {**DENSE, "weights": "allocation"}
    methods = [{**SPARSE, "sparsity": one} for one in (0.45, 0.5, 0.55)]
    plain = spec(run, 1, {"method": methods, "sampling": ["equal"]}, "by-hand", statistics=dense, per_language=True)
    jobs = prepared(drawn(plain, tmp_path), tmp_path, 1)
    claim(jobs)
    run_here(1, [*jobs.collecting_jobs(), *(jobs.run_job(one) for one in jobs.runs)])
    (pool,) = jobs.pools
    texts = {code: jobs.segments[one.fingerprint].path for code, one in pool.languages.items()}
    *_, known = measure_files(bloom, "float32", 2, texts, 2, ONE)
    assert isinstance(known, dict)
    decoder = Decoder(Checkpoint(bloom), torch.float32)
    linears = {(block, name): shape for block in range(4) for name, shape in decoder.linears(block).items()}
    cost = np.zeros((len(linears), 3, 4))
    for at, one in enumerate(jobs.runs):
        for report in read_block_reports(jobs.folders.run(one.label).blocks):
            for error in report.layer_error:
                s = known[report.block][error.linear][error.language]
                place = list(linears).index((report.block, error.linear))
                cost[place, at, LANGUAGES.index(error.language)] = 0.5 * s * error.error / (5 * 32)
    weights = np.array([rows * columns for rows, columns in linears.values()])
    sparsity = np.array([0.45, 0.5, 0.55])
    tried = Tried(sparsity, 1 - sparsity, cost, weights).refined()
    for label, objective in zip(labels, ("mean", "worst"), strict=False):
        chosen, found = deal(tried, 0.5, objective), budget(tmp_path, label)
        amounts = {
            (int(b), name): value for b, own in found["amounts"]["of_block"].items() for name, value in own.items()
        }
        assert amounts == pytest.approx(dict(zip(linears, tried.amounts[chosen], strict=True)), rel=1e-6)
        assert found["predicted"]["dealt"] == pytest.approx(
            dict(zip(LANGUAGES, tried.predicted(chosen), strict=True)), rel=1e-4
        )
        assert 0.5 <= found["mean"] < 0.502 and len(set(amounts.values())) > 2
    of_block = budget(tmp_path, labels[2])["amounts"]["of_block"]
    assert [own["mlp.dense_h_to_4h"] for own in of_block.values()] == pytest.approx(
        [0.45, 0.4833333, 0.5166667, 0.55], abs=1e-6
    )

    # Every linear has the zeros that it was given, and the runs are what the engine makes of these on one stage.
    for label in labels:
        of_block = budget(tmp_path, label)["amounts"]["of_block"]
        for report in read_block_reports(tmp_path / "tiny" / "runs" / label / "blocks"):
            for linear in report.linears:
                unit = min(128, linear.columns) * linear.rows
                assert linear.sparsity == pytest.approx(of_block[str(report.block)][linear.name], abs=1 / unit)
    by_sweep = {name: one for name, one in bits(tmp_path).items() if "budget-increase/" in name or "ramp" in name}
    again = spec(run, 1, {"method": [SPARSE], "budget": [INCREASE, "ramp"]}, "plain")
    jobs = prepared(drawn(again, tmp_path), tmp_path, 1)
    settled = replace(jobs, runs=[replace(one, dealt=budget(tmp_path, one.label)) for one in jobs.runs])
    claim(settled)
    run_here(1, [settled.run_job(one) for one in settled.runs])
    assert bits(tmp_path, "plain") == by_sweep and len(by_sweep) == 8

    # What was found is not sought again; where it is lost, the same is found, or the runs would be refused.
    again_result, printed = run_sweep(sweep, tmp_path)
    assert not again_result.failed and "nothing to compute" in printed and "trial0" not in printed
    shutil.rmtree(tmp_path / "adaptive")
    again_result, printed = run_sweep(sweep, tmp_path)
    assert not again_result.failed and "nothing to compute" in printed and "trial0: done" in printed


def test_a_budget_of_dense_statistics_and_of_found_weights_tries_with_those(
    ray_cluster: Cluster, run: dict[str, Any], tmp_path: Path
) -> None:
    adaptive = {"name": "adaptive", "objective": "worst", "trials": 3, "sensitivity_segments": 2}
    sampling = {"sampling": [adaptive, "proportional"]}
    own = {"rule": "increase", "sensitivity_segments": 2}
    sweep = spec(run, 1, {"method": [WANDA], **sampling}, statistics=DENSE, budget=own)
    result, _ = run_sweep(drawn(sweep, tmp_path), tmp_path)
    assert not result.failed
    # Three mixtures were tried for the first, and three amounts with the best of them; three with proportional weights.
    assert len(list(tmp_path.glob("adaptive/tried-*.json"))) == 6
    weights = json.loads((tmp_path / "tiny/runs/wanda-50-adaptive-worst-3/weights.json").read_text())
    assert set(weights) == set(LANGUAGES)


def test_bits_are_dealt_out_alike_to_linears_of_one_input_and_exported_so(
    ray_cluster: Cluster, llama: Path, run: dict[str, Any], tmp_path: Path
) -> None:
    method = {"name": "gptq", "bits": 3, "group_size": 16, "symmetric": True}
    budgets = [{**INCREASE, "bits": 3.5}, {"rule": "ramp", "bits": 3.5}]
    sweep = spec(run, 1, {"method": [method], "budget": budgets}, model=str(llama))
    result, _ = run_sweep(drawn(sweep, tmp_path), tmp_path)
    assert not result.failed
    for rule in ("increase", "ramp"):
        label = f"gptq-3bit-g16-sym-equal-budget-{rule}-3.5bit"
        found = budget(tmp_path, label)
        assert 3 < found["mean"] <= 3.5 and found["amounts"]["field"] == "bits"
        for own in found["amounts"]["of_block"].values():
            assert own["self_attn.q_proj"] == own["self_attn.k_proj"] == own["self_attn.v_proj"]
            assert own["mlp.gate_proj"] == own["mlp.up_proj"]
        folder = tmp_path / "tiny" / "runs" / label
        assert (
            f"- bits: 3 to 4 by linear, {found['mean']:.4g} on average, rule {rule}"
            in (folder / "checkpoint" / "README.md").read_text()
        )
        models = [
            AutoModelForCausalLM.from_pretrained(one)
            for one in (folder / "checkpoint", export_run(folder, "compressed-tensors", None))
        ]
        ids = torch.arange(60).view(3, 20)
        with torch.no_grad():
            assert torch.equal(models[0](ids).logits, models[1](ids).logits)
    # What was found stays where the moments were removed, as a full disk asks for.
    shutil.rmtree(tmp_path / "statistics")
    again, printed = run_sweep(sweep, tmp_path)
    assert not again.failed and "nothing to compute" in printed and "trial" not in printed
    # A trial of which reports were lost is no trial, and a damaged file is named.
    trial = next(iter(tmp_path.glob("adaptive/tried-*.json")))
    trial.write_text(json.dumps({"increase": {}, "sharing": []}))
    with pytest.raises(InputError, match=trial.name):
        run_sweep(sweep, tmp_path)


def test_text_that_trials_lack_and_a_ramp_that_is_level_are_named(
    run: dict[str, Any], tmp_path: Path, ray_cluster: Cluster
) -> None:
    with pytest.raises(InputError, match=r"budget.segments_per_language, of the trials: language 'en': .* 4000 were"):
        run_sweep(spec(run, 1, {"method": [WANDA]}, budget={**INCREASE, "segments_per_language": 4000}), tmp_path)
    level = spec(run, 1, {"method": [{"name": "gptq", "bits": 3}]}, budget={"rule": "ramp", "bits": 3.1})
    with pytest.raises(InputError, match=r"a ramp to 3\.1 bits gives all 4 blocks 3; give bits that are more than 1/4"):
        prepared_runs(level, tmp_path)


def test_a_run_that_is_finished_asks_for_no_room_for_trials(
    ray_cluster: Cluster, run: dict[str, Any], tmp_path: Path
) -> None:
    sweep = drawn(spec(run, 1, {"method": [WANDA]}, budget=INCREASE, keep="metrics"), tmp_path)
    runs = prepared_runs(sweep, tmp_path)
    resources, folders = Resources(Layout(1), ONE), SweepFolders(tmp_path, sweep.name)
    assert untried(runs, folders, resources) == pilots(runs)
    result, _ = run_sweep(sweep, tmp_path)
    assert not result.failed
    assert untried(runs, folders, resources) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": {"name": "wanda", "pattern": "2:4"}}, "method wanda-2:4 has no sparsity of single weights and no"),
        ({"budget": {"rule": "increase", "bits": 3.5}}, "method wanda-50 has no bits to deal out"),
        ({"method": {"name": "gptq", "bits": 8}, "budget": {"bits": 3.5}}, "the method's bits: 8 are not next to 3.5"),
        ({"method": {"name": "gptq", "bits": 3}, "budget": {"width": 0.5}}, "within 0.5 of 3 bits there are not two"),
        ({"method": {"name": "gptq", "bits": 3}, "budget": "ramp"}, "a ramp to 3 bits is level; give bits between"),
        (
            {"method": {"name": "wanda", "sparsity": 0.97}},
            "sparsity 0.92 to 1.02 is not within 0 and 1; take a smaller",
        ),
        ({"budget": {"rule": "ramp", "objective": "worst"}}, "rule ramp tries nothing and has no objective"),
        (
            {"method": "gptq", "budget": {"rule": "ramp", "bits": 4.5, "width": 2}},
            "between the two widths .* leave width",
        ),
        ({"budget": "owl"}, "unknown budget 'owl'; there are uniform, increase and ramp"),
        ({"budget": {"rule": "uniform", "width": 0.1}}, "uniform budget has no field 'width'"),
        ({"statistics": {"stored": "samplings"}}, "rule increase tries moments of single languages"),
    ],
)
def test_what_cannot_be_dealt_out_is_said_before_anything_starts(
    run: dict[str, Any], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        spec(run, 1, {"seed": [0]}, **{"method": WANDA, "budget": "increase", **changes}).runs()
