"""The error of each language in each block on the staged engine, against the plain model in float64."""

from pathlib import Path

import pytest
import torch
from ray.cluster_utils import Cluster
from transformers import AutoModelForCausalLM

from mbs_ray.cluster.job import Job
from mbs_ray.compression.block_report import read_block_reports
from mbs_ray.model.block_files import read_block
from mbs_ray.text.segment_file import SegmentSet
from tests.support.engine import LANGUAGES, digest, draw, make_job, run_all

SPARSE = {"name": "sparsegpt", "sparsity": 0.5}


@pytest.fixture(scope="module")
def held_out(ray_cluster: Cluster, bloom: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> SegmentSet:
    return draw(corpus, bloom, tmp_path_factory.mktemp("segments"), 1, seed=9)


def plain_errors(model_folder: Path, calibration: SegmentSet, blocks: Path) -> dict[tuple[int, str, str], list[float]]:
    """(block, language, linear) → Σ ‖ΔW x‖², Σ ‖W x‖²: the whole model in float64, dense from the block on."""
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float64)
    segments = calibration.read()
    token_ids = torch.from_numpy(segments.token_ids.astype("int64"))
    result = {}
    for index, block in enumerate(model.transformer.h):
        written = {name.split(f"h.{index}.")[1]: tensor for name, tensor in (read_block(blocks, index) or {}).items()}
        linears = {name: module for name, module in block.named_modules() if isinstance(module, torch.nn.Linear)}
        inputs: dict[str, torch.Tensor] = {}
        hooks = [
            module.register_forward_pre_hook(lambda _, given, name=name, seen=inputs: seen.update({name: given[0]}))
            for name, module in linears.items()
        ]
        with torch.no_grad():
            model(token_ids)
        for hook in hooks:
            hook.remove()
        for name, module in linears.items():
            dense, compressed = module.weight.detach(), written[f"{name}.weight"].double()
            for language in LANGUAGES:
                tokens = inputs[name][[one == language for one in segments.language]]
                result[index, language, name] = [
                    float((tokens @ weight.T).square().sum()) for weight in (compressed - dense, dense)
                ]
            module.weight.data = compressed
    return result


def assert_plain(job: Job, model: Path, calibration: SegmentSet) -> None:
    expected = plain_errors(model, calibration, job.blocks_folder)
    measured = {
        (report.block, one.language, one.linear): [one.error, one.energy]
        for report in read_block_reports(job.blocks_folder)
        for one in report.layer_error
    }
    assert measured.keys() == expected.keys() and len(measured) == 4 * len(LANGUAGES) * 4
    for key, values in expected.items():
        assert measured[key] == pytest.approx(values, rel=1e-3), key


@pytest.mark.slow
def test_errors_are_those_of_the_plain_model_and_measuring_changes_no_bit_also_where_a_run_goes_on(
    bloom: Path, calibration: SegmentSet, held_out: SegmentSet, tmp_path: Path
) -> None:
    job, unmeasured = (
        make_job(key, bloom, tmp_path / key, 2, calibration, held_out, SPARSE, per_language=key == "run")
        for key in ("run", "unmeasured")
    )
    assert all(outcome.error is None for outcome in run_all(2, [job, unmeasured]).values())
    assert_plain(job, bloom, calibration)
    assert digest(job.directory) == digest(unmeasured.directory)
    assert not any(report.layer_error for report in read_block_reports(unmeasured.blocks_folder))
    whole = read_block_reports(job.blocks_folder)
    assert all("measure" in report.seconds for report in whole)
    for index in (2, 3):
        for path in job.blocks_folder.glob(f"block-{index:05d}.*"):
            path.unlink()
    assert run_all(2, [job])["run"].error is None
    again = read_block_reports(job.blocks_folder)
    assert again[:2] == whole[:2]
    assert [report.layer_error for report in again] == [report.layer_error for report in whole]
    assert digest(job.directory) == digest(unmeasured.directory)


@pytest.mark.slow
def test_replicas_add_up_what_they_measure(
    bloom: Path, calibration: SegmentSet, held_out: SegmentSet, tmp_path: Path
) -> None:
    job = make_job("run", bloom, tmp_path, 1, calibration, held_out, SPARSE, replicas=2, per_language=True)
    assert run_all(1, [job])["run"].error is None
    assert_plain(job, bloom, calibration)


@pytest.mark.slow
def test_in_a_true_sequence_and_without_statistic_the_inputs_are_those_of_the_dense_block_too(
    bloom: Path, calibration: SegmentSet, held_out: SegmentSet, tmp_path: Path
) -> None:
    jobs = [
        make_job(
            str(sequential),
            bloom,
            tmp_path / str(sequential),
            1,
            calibration,
            held_out,
            method,
            true_sequential=sequential,
            per_language=True,
        )
        for sequential, method in ((True, SPARSE), (False, {"name": "rtn", "bits": 3}))
    ]
    assert all(outcome.error is None for outcome in run_all(1, jobs).values())
    for job in jobs:
        assert_plain(job, bloom, calibration)
