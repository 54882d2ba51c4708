"""Dense statistics in stages: moments against the plain model in float64, and runs that take them.

Only replicas need Ray: a stage's worker is called here as its actor calls it, stage after stage.
"""

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ray.cluster_utils import Cluster
from transformers import AutoModelForCausalLM

from mbs_ray.cluster.job import Collect, CompressStored, Job, job_text
from mbs_ray.cluster.sharding import shard_blocks
from mbs_ray.compression.block_report import read_block_reports
from mbs_ray.compression.stored_moments import RunMoments, Source, Target
from mbs_ray.errors import InputError
from mbs_ray.methods import Statistic, build_method
from mbs_ray.model.block_files import read_block
from mbs_ray.text.segment_file import SegmentSet
from mbs_ray.text.segment_request import SegmentRequest
from tests.support.engine import LANGUAGES, LENGTH, digest, draw_here, make_job, run_all, run_here

SPARSE = {"name": "sparsegpt", "sparsity": 0.5}
#: How often a run takes each language; not in the order of the pool.
WEIGHTS = {"sw": 1.75, "en": 0.25}
PARTS = ("self_attention.query_key_value", "self_attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h")


@pytest.fixture(scope="module")
def pool(bloom: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, SegmentSet]:
    """Seven segments of each language: microbatches of three, three and one."""
    folder = tmp_path_factory.mktemp("segments")
    request = SegmentRequest(str(corpus), str(bloom), LANGUAGES, dict.fromkeys(LANGUAGES, 7), LENGTH)
    return {language: draw_here(request.for_language(language), folder) for language in LANGUAGES}


@pytest.fixture(scope="module")
def held_out(bloom: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> SegmentSet:
    request = SegmentRequest(str(corpus), str(bloom), LANGUAGES, dict.fromkeys(LANGUAGES, 1), LENGTH, seed=9)
    return draw_here(request, tmp_path_factory.mktemp("held-out"))


def statistics_job(bloom: Path, folder: Path, pool: dict[str, SegmentSet], stages: int, replicas: int = 1) -> Job:
    """Full moments of every language, diagonal ones of two, and the weighted sum of two."""
    targets = [Target(folder / language, Statistic.FULL, {language: 1.0}) for language in pool]
    targets += [Target(folder / f"{code}-diagonal", Statistic.DIAGONAL, {code: 1.0}) for code in ("fr", "sw")]
    targets.append(Target(folder / "sum", Statistic.FULL, {code: WEIGHTS[code] for code in pool if code in WEIGHTS}))
    return Job(
        key="statistics",
        model=bloom,
        compute_dtype="float32",
        microbatch=3,
        directory=folder,
        blocks=tuple(shard_blocks([1.0] * 4, 0.0, stages)),
        work=Collect(tuple(job_text(language, one) for language, one in pool.items()), tuple(targets)),
        replicas=replicas,
    )


def sources(folder: Path) -> tuple[Source, ...]:
    return tuple(Source(folder / code, WEIGHTS[code], code) for code in LANGUAGES if code in WEIGHTS)


def bits(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.glob("*/block-*.safetensors"))
    }


def plain_moments(bloom: Path, pool: dict[str, SegmentSet]) -> dict[tuple[str, int, str], tuple[torch.Tensor, float]]:
    """(language, block, linear) → Σ x xᵀ and Σ ‖W x‖², by hooks on the whole model in float64."""
    model = AutoModelForCausalLM.from_pretrained(bloom, dtype=torch.float64)
    seen: dict[tuple[int, str], torch.Tensor] = {}
    for index, block in enumerate(model.transformer.h):
        for part in PARTS:
            block.get_submodule(part).register_forward_pre_hook(
                lambda _, inputs, key=(index, part): seen.update({key: inputs[0].flatten(0, -2)})
            )
    found = {}
    for language, one in pool.items():
        with torch.no_grad():
            model(torch.from_numpy(one.read().token_ids.astype("int64")))
        for (index, part), inputs in seen.items():
            weight = model.transformer.h[index].get_submodule(part).weight.detach()
            found[language, index, part] = (inputs.T @ inputs, float((inputs @ weight.T).square().sum()))
    return found


def assert_close(ours: torch.Tensor, reference: torch.Tensor) -> None:
    torch.testing.assert_close(ours.double(), reference, rtol=1e-4, atol=1e-5 * float(reference.abs().max()))


def test_moments_are_those_of_the_plain_dense_model_whatever_the_stages_and_what_is_there_already(
    bloom: Path, pool: dict[str, SegmentSet], held_out: SegmentSet, tmp_path: Path
) -> None:
    two, one = tmp_path / "two", tmp_path / "one"
    run_here(2, [statistics_job(bloom, two, pool, 2)])
    reference = plain_moments(bloom, pool)
    for (language, index, part), (moment, energy) in reference.items():
        ours = RunMoments([Source(two / language)], index).read([part], torch.device("cpu"))
        assert ours.moments[part].tokens == 7 * LENGTH
        assert_close(ours.moments[part].sum, moment)
        assert float(ours.energies[part]) == pytest.approx(energy, rel=1e-5)
        if language in ("fr", "sw"):
            diagonal = RunMoments([Source(two / f"{language}-diagonal")], index).read([part], torch.device("cpu"))
            assert_close(diagonal.moments[part].sum, moment.diagonal())
        weighed = RunMoments([Source(two / "sum")], index).read([part], torch.device("cpu")).moments[part]
        assert_close(weighed.sum, sum(weight * reference[code, index, part][0] for code, weight in WEIGHTS.items()))
    whole = bits(two)
    assert len(whole) == (4 + 2 + 1) * 4
    # As a kill would have left it: the sum as far as block 1, one language without a block in the middle.
    for path in (two / "sum" / "block-00002.safetensors", two / "sum" / "block-00003.safetensors"):
        path.unlink()
    (two / "hi" / "block-00001.safetensors").unlink()
    kept = {path: path.stat().st_mtime_ns for path in two.glob("*/*.safetensors")}
    # One stage goes on with the first, and makes the second; two solve on both layouts of the moments.
    runs = [
        replace(
            make_job(key, bloom, tmp_path / key, 2, None, held_out, None),
            work=CompressStored(SPARSE, moments, tuple(Source(two / code, language=code) for code in WEIGHTS)),
        )
        for key, moments in (("languages", sources(two)), ("samplings", (Source(two / "sum"),)))
    ]
    run_here(1, [statistics_job(bloom, two, pool, 1), statistics_job(bloom, one, pool, 1)])
    run_here(2, runs)
    assert bits(two) == bits(one) == whole
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert digest(runs[0].directory) == digest(runs[1].directory)
    dense = AutoModelForCausalLM.from_pretrained(bloom)
    for report in read_block_reports(runs[0].blocks_folder):
        written = read_block(runs[0].blocks_folder, report.block) or {}
        for linear in report.linears:
            name = f"transformer.h.{report.block}.{linear.name}.weight"
            weight = dense.get_parameter(name).detach()
            moment = RunMoments([Source(two / "sum")], report.block).read([linear.name], torch.device("cpu"))
            expected = build_method(SPARSE).compress(weight, moment.moments[linear.name]).weight
            assert torch.equal(written[name], expected), name
            assert linear.tokens == 2 * 7 * LENGTH
            change = written[name].double() - weight.double()
            for measured in (one for one in report.layer_error if one.linear == linear.name):
                second, energy = reference[measured.language, report.block, linear.name]
                assert measured.error == pytest.approx(float(((change @ second) * change).sum()), rel=1e-3)
                assert measured.energy == pytest.approx(energy, rel=1e-5)
        assert [one.language for one in report.layer_error[:: len(PARTS)]] == list(WEIGHTS)


@pytest.mark.slow
def test_replicas_share_every_languages_text_and_the_linears_of_a_run(
    ray_cluster: Cluster, bloom: Path, pool: dict[str, SegmentSet], held_out: SegmentSet, tmp_path: Path
) -> None:
    moments = tmp_path / "moments"
    run = make_job("run", bloom, tmp_path / "run", 1, None, held_out, None, replicas=2)
    work = CompressStored(SPARSE, sources(moments), (Source(moments / "hi", language="hi"),))
    run = replace(run, work=work)
    jobs = [statistics_job(bloom, moments, pool, 1, replicas=2), run]
    assert all(outcome.error is None for outcome in run_all(1, jobs).values())
    reference = plain_moments(bloom, pool)
    dense = AutoModelForCausalLM.from_pretrained(bloom)
    for (language, index, part), (moment, _) in reference.items():
        ours = RunMoments([Source(moments / language)], index).read([part], torch.device("cpu")).moments[part]
        assert ours.tokens == 7 * LENGTH
        assert_close(ours.sum, moment)
        weighed = RunMoments([Source(moments / "sum")], index).read([part], torch.device("cpu")).moments[part]
        name = f"transformer.h.{index}.{part}.weight"
        expected = build_method(SPARSE).compress(dense.get_parameter(name).detach(), weighed).weight
        assert torch.equal((read_block(run.blocks_folder, index) or {})[name], expected)
    for report in read_block_reports(run.blocks_folder):
        assert [one.linear for one in report.layer_error] == list(PARTS)
        assert all(one.error > 0 for one in report.layer_error)


def test_a_run_whose_moments_are_missing_fails_and_says_which(
    bloom: Path, held_out: SegmentSet, tmp_path: Path
) -> None:
    run = make_job("run", bloom, tmp_path / "run", 1, None, held_out, None)
    with pytest.raises(InputError, match=r"none/block-00000\.safetensors: not there"):
        run_here(1, [replace(run, work=CompressStored(SPARSE, (Source(tmp_path / "none"),)))])
