"""The staged engine on a real Ray cluster of several nodes."""

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from ray._private.internal_api import memory_summary
from ray.cluster_utils import Cluster
from transformers import AutoModelForCausalLM

from mbs_ray.cluster.cluster_options import ClusterOptions
from mbs_ray.cluster.layout import Layout
from mbs_ray.cluster.offload import AUTO
from mbs_ray.cluster.pipeline import Pipeline
from mbs_ray.cluster.resources import settle_resources
from mbs_ray.compression.block_report import read_block_reports
from mbs_ray.errors import InputError, StageDiedError
from mbs_ray.evaluation.perplexity import language_scores
from mbs_ray.model.block_files import read_block
from mbs_ray.run.numerics import Numerics
from mbs_ray.text.segment_file import SegmentSet
from tests.conftest import OBJECT_STORE_BYTES
from tests.support.engine import assemble_run, digest, draw, make_job, run_all
from tests.support.models import write_bloom, write_corpus
from tests.support.plain import compress_plainly
from tests.support.stages import ONE, WARM

SPARSE = {"name": "sparsegpt", "sparsity": 0.5}


@pytest.fixture(scope="module")
def held_out(ray_cluster: Cluster, bloom: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> SegmentSet:
    return draw(corpus, bloom, tmp_path_factory.mktemp("segments"), 3, seed=9)


def test_stages_give_the_weights_of_the_plain_way_whatever_their_number(
    bloom: Path, calibration: SegmentSet, held_out: SegmentSet, tmp_path: Path
) -> None:
    methods = {
        "sparsegpt": SPARSE,
        "gptq": {"name": "gptq", "bits": 3, "refine": 1},
        "wanda": {"name": "wanda", "pattern": "2:4"},
    }
    digests: dict[str, list[dict[str, str]]] = {key: [] for key in methods}
    for stages in (1, 2, 3):
        jobs = [
            make_job(key, bloom, tmp_path / f"{key}-{stages}", stages, calibration, held_out, method)
            for key, method in methods.items()
        ]
        outcomes = run_all(stages, jobs)
        for job in jobs:
            assert outcomes[job.key].error is None
            digests[job.key].append(digest(job.directory))
    for key, method in methods.items():
        assert digests[key][0] == digests[key][1] == digests[key][2]
        assembled = assemble_run(bloom, tmp_path / f"{key}-1", tmp_path / key)
        for name, weight in compress_plainly(bloom, calibration, method, microbatch=3).items():
            assert torch.equal(assembled.read(name), weight), name


def test_another_architecture_goes_through_the_same_door(
    ray_cluster: Cluster, llama: Path, corpus: Path, tmp_path: Path
) -> None:
    segments = draw(corpus, llama, tmp_path / "segments", 4)
    job = make_job("llama", llama, tmp_path / "run", 2, segments, segments, SPARSE, blocks=3)
    assert run_all(2, [job])["llama"].error is None
    assembled = assemble_run(llama, job.directory, tmp_path / "checkpoint")
    for name, weight in compress_plainly(llama, segments, SPARSE, 3, "model.layers").items():
        assert torch.equal(assembled.read(name), weight), name


def test_in_a_true_sequence_every_linear_sees_those_before_it_compressed(
    bloom: Path, calibration: SegmentSet, held_out: SegmentSet, tmp_path: Path
) -> None:
    job = make_job("run", bloom, tmp_path / "run", 2, calibration, held_out, SPARSE, true_sequential=True)
    assert run_all(2, [job])["run"].error is None
    written = {
        name: tensor for index in range(4) for name, tensor in (read_block(job.blocks_folder, index) or {}).items()
    }
    in_sequence = compress_plainly(bloom, calibration, SPARSE, microbatch=3, in_sequence=True)
    for name, weight in in_sequence.items():
        assert torch.equal(written[name], weight), name
    at_once = compress_plainly(bloom, calibration, SPARSE, microbatch=3)
    assert any(not torch.equal(weight, at_once[name]) for name, weight in in_sequence.items())


def test_two_equal_runs_in_one_pipeline_are_bit_identical_and_reported_block_by_block(
    hub_bloom: Path, calibration: SegmentSet, held_out: SegmentSet, tmp_path: Path
) -> None:
    jobs = [make_job(f"run{n}", hub_bloom, tmp_path / str(n), 2, calibration, held_out, SPARSE) for n in range(3)]
    outcomes = run_all(2, jobs)
    assert all(outcomes[job.key].error is None for job in jobs)
    assert digest(jobs[0].directory) == digest(jobs[1].directory) == digest(jobs[2].directory)
    reports = read_block_reports(jobs[0].blocks_folder)
    assert [report.block for report in reports] == [0, 1, 2, 3]
    for report in reports:
        assert [linear.sparsity for linear in report.linears] == [0.5] * 4
        assert {linear.tokens for linear in report.linears} == {20 * 32}
        assert set(report.seconds) == {"read", "collect", "solve", "write", "propagate"}


def test_perplexity_of_the_stages_is_that_of_the_checkpoint_in_plain_transformers(
    bloom: Path, calibration: SegmentSet, held_out: SegmentSet, tmp_path: Path
) -> None:
    method = {"name": "gptq", "bits": 4, "group_size": 16}
    job = make_job("run", bloom, tmp_path / "run", 2, calibration, held_out, method)
    dense = make_job("dense", bloom, tmp_path / "dense", 2, None, held_out, None)
    assert all(outcome.error is None for outcome in run_all(2, [dense, job]).values())
    target = assemble_run(bloom, job.directory, tmp_path / "checkpoint").folder
    content = held_out.read()
    ids = torch.from_numpy(content.token_ids.astype("int64"))
    text = torch.from_numpy(content.document_index[:, 1:].copy()) >= 0
    for folder, ran in ((target, job), (bloom, dense)):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        with torch.no_grad():
            logits = model(ids).logits[:, :-1].double()
        nll = torch.logsumexp(logits, -1) - logits.gather(2, ids[:, 1:, None])[..., 0]
        scores = language_scores(ran.scores_file("held-out"))
        assert set(scores) == set(content.language)
        for language, one in scores.items():
            own = torch.tensor([code == language for code in content.language])[:, None] & text
            assert one.tokens == int(own.sum())
            assert one.bytes == int(content.bytes[:, 1:][own.numpy()].sum())
            assert one.perplexity == pytest.approx(float(nll[own].mean().exp()), rel=1e-5)


def test_evaluation_segments_change_no_weight(
    bloom: Path, calibration: SegmentSet, held_out: SegmentSet, tmp_path: Path
) -> None:
    small = make_job("small", bloom, tmp_path / "small", 1, calibration, held_out, SPARSE)
    large = make_job("large", bloom, tmp_path / "large", 1, calibration, calibration, SPARSE)
    run_all(1, [small, large])
    small_bits, large_bits = digest(small.directory), digest(large.directory)
    assert small_bits.pop("nll") != large_bits.pop("nll")
    assert small_bits == large_bits


def test_a_run_that_fails_says_why_and_the_others_go_on(
    bloom: Path, calibration: SegmentSet, held_out: SegmentSet, tmp_path: Path
) -> None:
    broken = make_job(
        "broken", bloom, tmp_path / "broken", 2, calibration, held_out, {"name": "wanda", "pattern": "3:5"}
    )
    late = make_job("late", bloom, tmp_path / "late", 2, calibration, held_out, SPARSE)
    (late.blocks_folder / "block-00003.safetensors").write_text("no tensors")
    jobs = [
        make_job("first", bloom, tmp_path / "first", 2, calibration, held_out, SPARSE),
        broken,
        late,
        make_job("last", bloom, tmp_path / "last", 2, calibration, held_out, SPARSE),
    ]
    outcomes = run_all(2, jobs)
    assert outcomes["first"].error is None and outcomes["last"].error is None
    assert isinstance(outcomes["broken"].error, InputError)
    assert "block 0 mlp.dense_4h_to_h: pattern 3:5" in str(outcomes["broken"].error)
    assert outcomes["late"].error is not None
    assert digest(jobs[0].directory) == digest(jobs[3].directory)


def test_a_killed_stage_costs_the_block_in_work_and_no_bit(
    bloom: Path, calibration: SegmentSet, held_out: SegmentSet, tmp_path: Path
) -> None:
    undisturbed = make_job("run", bloom, tmp_path / "undisturbed", 2, calibration, held_out, SPARSE)
    run_all(2, [undisturbed])
    job = make_job("run", bloom, tmp_path / "killed", 2, calibration, held_out, SPARSE)
    with pytest.raises(StageDiedError), Pipeline(Layout(2), ONE) as pipeline:
        pipeline.submit(job)
        while not (job.blocks_folder / "block-00001.safetensors").is_file():
            time.sleep(0.005)
        os.kill(pipeline.process_ids[1], signal.SIGKILL)
        while pipeline.busy:
            list(pipeline.outcomes(1.0))
    finished = {path.name: path.stat().st_mtime_ns for path in job.blocks_folder.glob("*.safetensors")}
    assert 2 <= len(finished) < 4
    again = make_job("run", bloom, tmp_path / "killed", 3, calibration, held_out, SPARSE)
    assert run_all(3, [again])["run"].error is None
    assert digest(again.directory) == digest(undisturbed.directory)
    for name, written in finished.items():
        assert (again.blocks_folder / name).stat().st_mtime_ns == written


def test_a_kill_between_packed_file_and_block_file_costs_the_block_and_no_bit(
    bloom: Path, calibration: SegmentSet, held_out: SegmentSet, tmp_path: Path
) -> None:
    method = {"name": "gptq", "bits": 4, "group_size": 16}
    job = make_job("run", bloom, tmp_path / "run", 2, calibration, held_out, method)
    assert run_all(2, [job])["run"].error is None
    undisturbed = digest(job.directory)
    assert {f"packed/block-0000{index}.safetensors" for index in range(4)} < undisturbed.keys()
    packed = job.directory / "packed" / "block-00001.safetensors"
    before = packed.stat().st_ino
    (job.blocks_folder / "block-00001.safetensors").unlink()
    (job.directory / "evaluation" / "held-out.parquet").unlink()
    assert run_all(2, [job])["run"].error is None
    assert packed.stat().st_ino != before
    assert digest(job.directory) == undisturbed


@pytest.mark.slow
def test_activations_eight_times_the_object_store_are_handed_over_without_spilling(
    ray_cluster: Cluster, held_out: SegmentSet, tmp_path: Path
) -> None:
    # One head, short segments and no moments: what is computed is not the subject.
    wide = write_bloom(tmp_path / "wide", layers=2, hidden=128, heads=1)
    magnitude = {"name": "magnitude", "sparsity": 0.5}
    segments = draw(write_corpus(tmp_path / "corpus", 6800), wide, tmp_path / "segments", 10400, length=32)
    assert len(segments) * 32 * 128 * 4 >= 8 * OBJECT_STORE_BYTES
    bits = []
    for stages in (1, 2):
        job = make_job("wide", wide, tmp_path / str(stages), stages, segments, held_out, magnitude, 2, microbatch=256)
        assert run_all(stages, [job])["wide"].error is None
        bits.append(digest(job.directory))
    assert bits[0] == bits[1]
    assert "Spilled" not in memory_summary(ray_cluster.address, stats_only=True)
    # The word would be there: more than the store holds, put at once, is spilled.
    held = [ray.put(np.ones(OBJECT_STORE_BYTES // 3, dtype=np.uint8)) for _ in range(5)]
    assert "Spilled" in memory_summary(ray_cluster.address, stats_only=True)
    del held


def test_more_stages_than_cpus_and_than_blocks_are_refused(
    ray_cluster: Cluster, bloom: Path, held_out: SegmentSet, tmp_path: Path
) -> None:
    with (
        pytest.raises(InputError, match="layout: 4 actors of 9 threads want 36 CPUs"),
        Pipeline(Layout(4), Numerics("cpu", 9)),
    ):
        pass
    with pytest.raises(InputError, match="5 stages are more than the 4 blocks"):
        make_job("run", bloom, tmp_path, 5, None, held_out, None)


def test_stages_that_no_node_can_hold_are_refused_after_a_short_wait(
    ray_cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mbs_ray.cluster.pipeline.PLACE_SECONDS", 2.0)
    # Twelve CPUs in all, but four on each node.
    with pytest.raises(InputError, match="1 actors of 5 CPUs each could not be placed within 2 s on nodes of 4 CPUs"):
        Pipeline(Layout(1), Numerics("cpu", 5)).__enter__()


def test_stages_spread_over_the_nodes_and_share_their_threads(ray_cluster: Cluster) -> None:
    def threads(stages: int, asked: int | None = None) -> int:
        options = ClusterOptions(stages=stages, replicas=1, threads=asked)
        return settle_resources(options, runs=stages, blocks=6, microbatches=1).numerics.threads

    assert [threads(stages) for stages in (1, 2, 3, 4, 6)] == [4, 4, 4, 2, 2]
    assert threads(2, 3) == 3
    with pytest.raises(InputError, match=r"no node has 5 CPU\(s\) for an actor; there are nodes of 4 CPUs"):
        threads(2, 5)
    with WARM.lent(Layout(3), ONE, AUTO, print) as pipeline:
        actors = ray._private.state.actors().values()
        nodes = {one["Address"]["NodeID"] for one in actors if one["Pid"] in pipeline.process_ids}
    assert len(nodes) == 3
