"""Sweeps over mixtures of experts, wrapped and renamed models on a real cluster, and what plain transformers says."""

import json
import math
from pathlib import Path

import pandas as pd
import pytest
import torch
from ray.cluster_utils import Cluster
from safetensors.torch import load_file

from mbs_ray.compression.block_report import read_block_reports
from mbs_ray.errors import InputError
from mbs_ray.model.checkpoint import Checkpoint
from mbs_ray.model.decoder import Decoder
from mbs_ray.plan.planned_work import MetaDecoders, planned_runs
from mbs_ray.run.export import export_run
from mbs_ray.run.sweep_spec import SweepSpec, validated
from mbs_ray.text.segment_file import SegmentSet
from tests.support.architectures import WINDOW
from tests.support.mixtures import MIXTURES, WRAPPERS, load_plain, write_translated
from tests.support.models import HELD_OUT, write_corpus
from tests.support.stages import kill_a_stage_after
from tests.support.sweeps import predrawn, prepared_runs, run_sweep

pytestmark = pytest.mark.slow

LANGUAGES = ("en", "sw", "hi")
METHODS = {
    "wanda-50": {"name": "wanda", "sparsity": 0.5},
    "sparsegpt-50": {"name": "sparsegpt", "sparsity": 0.5},
    "gptq-4bit-g8-sym": {"name": "gptq", "bits": 4, "group_size": 8, "symmetric": True},
}
NAMES = ("qwen3-moe", "mixtral", "olmoe", "deepseek-v3", "gpt-oss", "gpt-neox", "gemma3")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {name: write_translated(folder / name, name) for name in NAMES}


@pytest.fixture(scope="module")
def run(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    held_out = write_corpus(tmp_path_factory.mktemp("held-out"), 20, first=HELD_OUT)
    return {
        "corpus": str(corpus),
        "languages": list(LANGUAGES),
        "segments": 9,
        "sequence_length": 3 * WINDOW,
        "sampling": "equal",
        "per_language": True,
        "expert_tokens": 1.0,
        "evaluation": {"held-out": {"corpus": str(held_out), "segments": 4}},
    }


def swept_to(out: Path, run: dict, grid: dict, layout: dict, name: str = "mixtures") -> Path:
    spec = validated(SweepSpec, {"name": name, "run": run, "grid": grid, "layout": layout, "threads": 1})
    predrawn(prepared_runs(spec, out), out)
    result, _ = run_sweep(spec, out)
    assert result.failed == {}
    return out / name


@pytest.fixture(scope="module")
def swept(ray_cluster: Cluster, models: dict[str, Path], run: dict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    grid = {"model": [str(folder) for folder in models.values()], "method": list(METHODS.values())}
    return swept_to(tmp_path_factory.mktemp("out"), run, grid, {"stages": 2})


def perplexities(model: object, segments: SegmentSet) -> dict[str, float]:
    nll: dict[str, list[float]] = {}
    content = segments.read()
    with torch.no_grad():
        for ids, document, language in zip(content.token_ids, content.document_index, content.language, strict=True):
            tokens = torch.tensor(ids, dtype=torch.int64)
            scores = model(input_ids=tokens[None], use_cache=False).logits[0].double().log_softmax(dim=-1)
            scored = [place for place in range(1, len(tokens)) if document[place] >= 0]
            nll.setdefault(language, []).extend(-float(scores[place - 1, tokens[place]]) for place in scored)
    return {language: math.exp(math.fsum(values) / len(values)) for language, values in nll.items()}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", NAMES)
def test_the_checkpoint_loads_whole_under_the_names_of_its_source_with_the_perplexities_of_the_stages(
    name: str, method: str, swept: Path, models: dict[str, Path]
) -> None:
    folder = swept / "runs" / f"{name}-{method}-equal"
    result = json.loads((folder / "result.json").read_text())
    before, after = Checkpoint(models[name]), Checkpoint(folder / "checkpoint")
    assert {key: (one.shape, one.dtype) for key, one in after.tensors.items()} == {
        key: (one.shape, one.dtype) for key, one in before.tensors.items()
    }
    segments = SegmentSet.open(swept.parent / "segments" / f"{result['evaluation']['held-out'][:16]}.parquet")
    plain = perplexities(load_plain(folder / "checkpoint", name), segments)
    assert plain.keys() == set(LANGUAGES)
    for language in LANGUAGES:
        assert result["metrics"][f"ppl/{language}"] == pytest.approx(plain[language], rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_half_of_every_linear_is_gone_and_nothing_else(name: str, swept: Path, models: dict[str, Path]) -> None:
    dense = Decoder(Checkpoint(models[name]), torch.float32)
    pruned = Decoder(Checkpoint(swept / "runs" / f"{name}-wanda-50-equal" / "checkpoint"), torch.float32)
    for index in range(dense.blocks):
        before, after = dense.read_block(index), pruned.read_block(index)
        weights = {f"{linear}.weight" for linear in dense.linears(index)}
        for tensor, value in before.items():
            if tensor in weights:
                assert ((after[tensor] == 0).sum(1) == value.shape[1] // 2).all(), tensor
            else:
                assert torch.equal(after[tensor], value), tensor
    for tensor in dense.outside_tensors():
        assert torch.equal(dense.checkpoint.read(tensor), pruned.checkpoint.read(tensor)), tensor


def test_an_image_goes_the_same_way_through_the_compressed_wrapper(swept: Path, models: dict[str, Path]) -> None:
    assert "gemma3" in WRAPPERS
    pixels = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    folders = models["gemma3"], swept / "runs" / "gemma3-sparsegpt-50-equal" / "checkpoint"
    dense, pruned = (load_plain(folder, "gemma3") for folder in folders)
    ids = torch.tensor([[5, 399, 399, 399, 399, 6, 7]])
    with torch.no_grad():
        features = [model.get_image_features(pixels).pooler_output for model in (dense, pruned)]
        assert torch.equal(*features)
        logits = [
            model(input_ids=ids, pixel_values=pixels, token_type_ids=(ids == 399).long(), use_cache=False).logits
            for model in (dense, pruned)
        ]
    assert torch.isfinite(logits[1]).all() and not torch.equal(*logits)


@pytest.mark.parametrize("name", ["qwen3-moe", "mixtral", "deepseek-v3", "gemma3"])
def test_a_packed_one_loads_in_transformers_as_the_dense_form_of_its_run(name: str, swept: Path) -> None:
    folder = swept / "runs" / f"{name}-gptq-4bit-g8-sym-equal"
    packed = export_run(folder, "compressed-tensors", None)
    stored = Checkpoint(packed).tensors
    assert any(".experts.3." in tensor and tensor.endswith("weight_packed") for tensor in stored) == (name in MIXTURES)
    assert not any("vision_tower" in tensor and tensor.endswith("weight_packed") for tensor in stored)
    ids = torch.arange(3 * WINDOW)[None]
    with torch.no_grad():
        both = (load_plain(one, name, torch.bfloat16) for one in (folder / "checkpoint", packed))
        expected, own = (model(input_ids=ids).logits for model in both)
    assert torch.equal(own, expected)


def test_experts_in_one_tensor_are_not_exported_packed(swept: Path) -> None:
    with pytest.raises(InputError, match=r"gate_proj: this checkpoint holds all experts in one tensor"):
        export_run(swept / "runs" / "gpt-oss-gptq-4bit-g8-sym-equal", "compressed-tensors", None)


@pytest.mark.parametrize("name", [name for name in NAMES if name in MIXTURES])
def test_reports_say_which_tokens_came_to_which_expert_and_what_was_borrowed(name: str, swept: Path) -> None:
    folder = swept / "runs" / f"{name}-sparsegpt-50-equal"
    table = pd.read_parquet(folder / "experts.parquet")
    reports = read_block_reports(folder / "blocks")
    blocks = [report for report in reports if report.mixtures]
    assert set(table["block"]) == {report.block for report in blocks}
    k, tokens = 2, 9 * 3 * WINDOW
    assert (table.groupby("block")["tokens"].sum() == k * tokens).all()
    assert (table.groupby(["block", "language"])["tokens"].sum() == k * tokens / 3).all()
    for report in blocks:
        (mixture,) = report.mixtures
        received = {number: sum(row[number] for row in mixture.tokens) for number in range(len(mixture.tokens[0]))}
        for linear in report.linears:
            if not linear.name.startswith(f"{mixture.mixture}."):
                assert linear.borrowed == 0
                continue
            number = int(linear.name.removeprefix(f"{mixture.mixture}.").split(".")[0])
            least = linear.columns
            assert linear.borrowed == pytest.approx(max(0.0, 1 - received[number] / least))
            assert linear.tokens == max(least, received[number])
    metrics = json.loads((folder / "result.json").read_text())["metrics"]
    starved = table[table["borrowed"] > 0].groupby(["block", "expert"]).ngroups
    assert metrics["experts/starved"] == starved
    errors = reports[-1].layer_error
    assert {one.language for one in errors if ".experts." in one.linear} == set(LANGUAGES)


@pytest.mark.parametrize("name", ["qwen3-moe", "deepseek-v3"])
def test_stages_change_no_bit_and_a_killed_run_goes_on_to_the_same_bits(
    name: str, swept: Path, models: dict[str, Path], run: dict, tmp_path: Path
) -> None:
    label = f"{name}-gptq-4bit-g8-sym-equal"
    expected = load_all(swept / "runs" / label / "checkpoint")
    grid = {"model": [str(models[name])], "method": [METHODS["gptq-4bit-g8-sym"]]}
    for stages in (1, 3):
        folder = swept_to(tmp_path / str(stages), run, grid, {"stages": stages})
        (alone,) = (folder / "runs").iterdir()
        assert same(load_all(alone / "checkpoint"), expected)
    out = tmp_path / "killed"
    spec = validated(SweepSpec, {"name": "mixtures", "run": run, "grid": grid, "layout": {"stages": 1}, "threads": 1})
    predrawn(prepared_runs(spec, out), out)
    killer = kill_a_stage_after(out, "mixtures/runs/*/blocks/block-00001.safetensors")
    run_sweep(spec, out)
    killer.join()
    result, _ = run_sweep(spec, out)
    assert result.failed == {}
    (alone,) = (out / "mixtures" / "runs").iterdir()
    assert same(load_all(alone / "checkpoint"), expected)


@pytest.mark.parametrize("true_sequential", [False, True])
def test_replicas_agree_on_who_is_starved(
    true_sequential: bool, swept: Path, models: dict[str, Path], run: dict, tmp_path: Path
) -> None:
    """Sums of moments are added up in another order, so that bits may differ; counts may not."""
    own = {**run, "true_sequential": true_sequential, "microbatch": 1}
    grid = {"model": [str(models["qwen3-moe"])], "method": [METHODS["sparsegpt-50"]]}
    tables = []
    for replicas in (1, 2):
        folder = swept_to(tmp_path / str(replicas), own, grid, {"stages": 1, "replicas": replicas})
        (alone,) = (folder / "runs").iterdir()
        tables.append((pd.read_parquet(alone / "experts.parquet"), load_all(alone / "checkpoint")))
    (single, weights), (several, others) = tables
    first = single[single["block"] == 0].reset_index(drop=True)
    pd.testing.assert_frame_equal(first, several[several["block"] == 0].reset_index(drop=True))
    ours = weights["model.layers.0.mlp.experts.0.down_proj.weight"].float()
    theirs = others["model.layers.0.mlp.experts.0.down_proj.weight"].float()
    assert float(((ours == 0) == (theirs == 0)).float().mean()) > 0.95


@pytest.mark.parametrize(
    "field",
    [{"statistics": "dense"}, {"fit_to": {"mode": "dense", "strength": 0.5}, "per_language": False}],
    ids=["statistics", "fit_to"],
)
def test_what_is_not_built_for_experts_is_refused_by_field(
    field: dict, models: dict[str, Path], run: dict, tmp_path: Path
) -> None:
    grid = {"model": [str(models["mixtral"])], "method": [METHODS["wanda-50"]]}
    spec = validated(SweepSpec, {"name": "refused", "run": {**run, **field}, "grid": grid})
    said = rf"{next(iter(field))}: is not built for mixtures of experts"
    with pytest.raises(InputError, match=said):
        prepared_runs(spec, tmp_path)
    with pytest.raises(InputError, match=said):
        planned_runs(spec.runs(), ["one"], MetaDecoders(False))


def load_all(checkpoint: Path) -> dict[str, torch.Tensor]:
    return {name: one for file in checkpoint.glob("*.safetensors") for name, one in load_file(file).items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
