"""Several actors that share a stage: what they compute together, and what becomes of them when one fails or dies."""

import itertools
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ray.cluster_utils import Cluster

from mbs_ray.cluster.layout import Layout
from mbs_ray.cluster.offload import AUTO
from mbs_ray.cluster.pipeline import Outcome, Pipeline
from mbs_ray.cluster.sharding import assign_longest_first
from mbs_ray.compression.block_report import read_block_reports
from mbs_ray.errors import InputError, StageDiedError
from mbs_ray.evaluation.perplexity import language_scores
from mbs_ray.model.block_files import read_block
from mbs_ray.text.segment_file import SegmentSet
from tests.support.engine import digest, draw, make_job, run_all
from tests.support.plain import compress_plainly
from tests.support.stages import ONE, WARM

SPARSE = {"name": "sparsegpt", "sparsity": 0.5}
METHODS = {
    "sparsegpt": SPARSE,
    "gptq": {"name": "gptq", "bits": 4, "group_size": 16},
    "wanda": {"name": "wanda", "sparsity": 0.5},
    "magnitude": {"name": "magnitude", "sparsity": 0.5},
}


@pytest.fixture(scope="module")
def held_out(ray_cluster: Cluster, bloom: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> SegmentSet:
    """Four segments: two microbatches, fewer than the most replicas."""
    return draw(corpus, bloom, tmp_path_factory.mktemp("segments"), 1, seed=9)


@pytest.fixture(scope="module")
def undisturbed(
    bloom: Path, calibration: SegmentSet, held_out: SegmentSet, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """The bits of a run on one stage of two replicas."""
    folder = tmp_path_factory.mktemp("undisturbed")
    job = make_job("run", bloom, folder, 1, calibration, held_out, SPARSE, replicas=2)
    assert run_all(1, [job])["run"].error is None
    return digest(folder)


@pytest.mark.slow
def test_two_replicas_give_the_bits_of_two_sums_that_are_added(
    bloom: Path, calibration: SegmentSet, held_out: SegmentSet, tmp_path: Path
) -> None:
    bits = []
    for stages, replicas in ((1, 2), (1, 2), (2, 2)):
        folder = tmp_path / str(len(bits))
        jobs = [
            make_job(key, bloom, folder / key, stages, calibration, held_out, method, replicas=replicas)
            for key, method in METHODS.items()
        ]
        assert [outcome.error for outcome in run_all(stages, jobs).values()] == [None] * len(METHODS)
        bits.append({job.key: digest(job.directory) for job in jobs})
    assert bits[0] == bits[1] == bits[2]
    assert "packed/block-00003.safetensors" in bits[0]["gptq"]
    for key in ("sparsegpt", "gptq", "wanda"):
        written = {
            name: tensor
            for index in range(4)
            for name, tensor in (read_block(tmp_path / "2" / key / "blocks", index) or {}).items()
        }
        # Seven microbatches: three for the first replica, four for the second.
        plain = compress_plainly(bloom, calibration, METHODS[key], 3, parts=[range(9), range(9, 20)])
        for name, weight in plain.items():
            assert torch.equal(written[name], weight), name


@pytest.mark.slow
@pytest.mark.parametrize("fit", [False, True])
def test_in_a_true_sequence_replicas_take_turns_together(
    fit: bool, bloom: Path, calibration: SegmentSet, held_out: SegmentSet, tmp_path: Path
) -> None:
    jobs = [
        make_job(
            "run", bloom, tmp_path / str(run), 1, calibration, held_out, SPARSE,
            true_sequential=True, replicas=2, fit=fit,
        )
        for run in range(2)
    ]  # fmt: skip
    assert all(run_all(1, [job])["run"].error is None for job in jobs)
    assert digest(jobs[0].directory) == digest(jobs[1].directory)


@pytest.mark.slow
def test_replicas_fit_their_run_to_the_dense_model_as_one_does(
    bloom: Path, calibration: SegmentSet, held_out: SegmentSet, tmp_path: Path
) -> None:
    """Block by block to bfloat16's last bit, up to the first in which other weights are pruned: later ones see others.

    Sums are in another order, so that a magnitude at the threshold may fall on its other side.
    """
    for replicas in (1, 2):
        folder, method = tmp_path / str(replicas), {"name": "magnitude"}
        job = make_job("run", bloom, folder, 2, calibration, held_out, method, replicas=replicas, fit=True)
        assert run_all(2, [job])["run"].error is None
    one, two = (read_block_reports(tmp_path / name / "blocks") for name in ("1", "2"))
    compared, alike = 0, True
    for alone, shared in zip(one, two, strict=True):
        assert [linear.strength for linear in alone.linears] == pytest.approx(
            [linear.strength for linear in shared.linears], abs=0.02
        )
        if not alike:
            continue
        whole, summed = (read_block(tmp_path / name / "blocks", alone.block) or {} for name in ("1", "2"))
        for name, tensor in whole.items():
            apart = (tensor.float() - summed[name].float()).abs() > 2**-7 * tensor.float().abs() + 1e-3
            assert apart.float().mean() < 0.01, name
        compared += 1
        alike = all(torch.equal(tensor == 0, summed[name] == 0) for name, tensor in whole.items())
    assert compared >= 2  # the first one has nothing to be fitted to


@pytest.mark.slow
def test_a_replica_that_cannot_go_on_takes_its_run_along_and_no_other(
    bloom: Path, calibration: SegmentSet, held_out: SegmentSet, tmp_path: Path
) -> None:
    broken = make_job(
        "broken", bloom, tmp_path / "broken", 2, calibration, held_out, {"name": "wanda", "pattern": "3:5"}, replicas=2
    )
    late = make_job("late", bloom, tmp_path / "late", 2, calibration, held_out, SPARSE, replicas=2)
    (late.blocks_folder / "block-00003.safetensors").write_text("no tensors")
    # Where the first replica would write a folder lies.
    full = make_job("full", bloom, tmp_path / "full", 2, calibration, held_out, SPARSE, replicas=2)
    (full.blocks_folder / "block-00001.json").mkdir()
    jobs = [
        make_job("first", bloom, tmp_path / "first", 2, calibration, held_out, SPARSE, replicas=2),
        broken,
        late,
        full,
        make_job("last", bloom, tmp_path / "last", 2, calibration, held_out, SPARSE, replicas=2),
    ]
    outcomes = run_all(2, jobs)
    assert outcomes["first"].error is None and outcomes["last"].error is None
    assert isinstance(outcomes["broken"].error, InputError)
    assert "pattern 3:5" in str(outcomes["broken"].error)
    assert outcomes["late"].error is not None
    assert isinstance(outcomes["full"].error, IsADirectoryError)
    assert digest(jobs[0].directory) == digest(jobs[-1].directory)


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_replica_costs_the_block_in_work_and_no_bit(
    bloom: Path,
    calibration: SegmentSet,
    held_out: SegmentSet,
    undisturbed: dict[str, str],
    tmp_path: Path,
    killed: int,
) -> None:
    job = make_job("run", bloom, tmp_path, 1, calibration, held_out, SPARSE, replicas=2)
    with (
        pytest.raises(StageDiedError, match=f"stage 1 replica {killed + 1} died during run"),
        Pipeline(Layout(1, 2), ONE) as pipeline,
    ):
        pipeline.submit(job)
        while not (job.blocks_folder / "block-00001.safetensors").is_file():
            time.sleep(0.005)
        os.kill(pipeline.process_ids[killed], signal.SIGKILL)
        _outcomes(pipeline)
    finished = {path.name: path.stat().st_mtime_ns for path in job.blocks_folder.glob("*.safetensors")}
    assert 2 <= len(finished) < 4
    assert run_all(1, [job])["run"].error is None
    assert digest(job.directory) == undisturbed
    for name, written in finished.items():
        assert (job.blocks_folder / name).stat().st_mtime_ns == written


@pytest.mark.slow
def test_an_actor_that_hangs_counts_as_dead(
    bloom: Path, calibration: SegmentSet, held_out: SegmentSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mbs_ray.cluster.pipeline.ANSWER_SECONDS", 4.0)
    job = make_job("run", bloom, tmp_path / "run", 1, calibration, held_out, SPARSE, replicas=2)
    with (
        pytest.raises(StageDiedError, match="stage 1 replica 2 has not answered for 4 s"),
        Pipeline(Layout(1, 2), ONE) as pipeline,
    ):
        os.kill(pipeline.process_ids[1], signal.SIGSTOP)
        pipeline.submit(job)
        _outcomes(pipeline)
    assert run_all(1, [job])["run"].error is None


@pytest.mark.slow
def test_replicas_change_no_more_than_the_order_of_sums(
    bloom: Path, calibration: SegmentSet, held_out: SegmentSet, tmp_path: Path
) -> None:
    jobs = {
        replicas: make_job("run", bloom, tmp_path / str(replicas), 2, calibration, held_out, SPARSE, replicas=replicas)
        for replicas in (1, 3)
    }
    for job in jobs.values():
        assert run_all(2, [job])["run"].error is None
    for one, shared in zip(*(read_block_reports(job.blocks_folder) for job in jobs.values()), strict=True):
        assert [linear.name for linear in one.linears] == [linear.name for linear in shared.linears]
        for alone, split in zip(one.linears, shared.linears, strict=True):
            assert split.tokens == alone.tokens == 20 * 32
            assert split.loss == pytest.approx(alone.loss, rel=1e-3)
            assert split.relative_loss == pytest.approx(alone.relative_loss, rel=1e-3)
        assert {"reduce", "broadcast"} <= set(shared.seconds) - set(one.seconds)
    alone_scores, shared_scores = (language_scores(job.scores_file("held-out")) for job in jobs.values())
    for language, score in alone_scores.items():
        assert shared_scores[language].tokens == score.tokens
        assert shared_scores[language].perplexity == pytest.approx(score.perplexity, rel=5e-3)
    alone_mask, shared_mask = (zeros(job.blocks_folder) for job in jobs.values())
    assert (alone_mask == shared_mask).float().mean() > 0.99


@pytest.mark.slow
def test_replicas_score_a_dense_model_bit_for_bit(
    bloom: Path, calibration: SegmentSet, held_out: SegmentSet, tmp_path: Path
) -> None:
    bits = []
    for replicas in (1, 3):
        job = make_job("dense", bloom, tmp_path / str(replicas), 2, None, held_out, None, replicas=replicas)
        assert run_all(2, [job])["dense"].error is None
        bits.append(digest(job.directory))
    assert bits[0] == bits[1]


@pytest.mark.slow
def test_a_pause_of_the_driver_is_no_silence_of_a_stage(ray_cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mbs_ray.cluster.pipeline.ANSWER_SECONDS", 5.0)
    with WARM.lent(Layout(1, 2), ONE, AUTO, print) as pipeline:
        pipeline.statuses()
        os.kill(pipeline.process_ids[1], signal.SIGSTOP)
        try:
            time.sleep(6)  # as a driver does that assembles a checkpoint
            pipeline.statuses()
            with pytest.raises(StageDiedError, match="stage 1 replica 2 has not answered for 5 s"):
                for _ in range(5):
                    pipeline.statuses()
        finally:
            os.kill(pipeline.process_ids[1], signal.SIGCONT)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=7), st.integers(1, 3))
def test_work_is_dealt_out_almost_as_evenly_as_can_be(costs: list[int], hands: int) -> None:
    dealt = assign_longest_first(costs, hands)
    assert set(dealt) <= set(range(hands))
    best = min(_makespan(costs, one, hands) for one in itertools.product(range(hands), repeat=len(costs)))
    # Graham (1969): longest first is within 4/3 - 1/(3 m) of the best.
    assert _makespan(costs, dealt, hands) <= (4 / 3 - 1 / (3 * hands)) * best + 1e-9


def zeros(blocks_folder: Path) -> torch.Tensor:
    """Which weights of all four blocks are zero."""
    blocks = [read_block(blocks_folder, index) or {} for index in range(4)]
    return torch.cat([tensor.flatten() == 0 for block in blocks for tensor in block.values()])


def _makespan(costs: list[int], dealt: list[int] | tuple[int, ...], hands: int) -> int:
    return max(sum(cost for cost, hand in zip(costs, dealt, strict=True) if hand == own) for own in range(hands))


def _outcomes(pipeline: Pipeline) -> list[Outcome]:
    outcomes: list[Outcome] = []
    while pipeline.busy:
        outcomes += pipeline.outcomes(0.5)
        pipeline.statuses()
    return outcomes
