"""A sweep over six architectures and three methods on a real cluster, and what plain transformers makes of it."""

import json
from pathlib import Path

import pytest
import torch
from ray.cluster_utils import Cluster
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from mbs_ray.errors import InputError
from mbs_ray.model.checkpoint import Checkpoint
from mbs_ray.run.export import export_run
from mbs_ray.run.sweep_spec import SweepSpec, validated
from mbs_ray.text.segment_file import SegmentSet
from tests.support.architectures import SIX, WINDOW, plain_perplexities, write_architecture
from tests.support.models import HELD_OUT, write_corpus
from tests.support.sweeps import predrawn, prepared_runs, run_sweep

pytestmark = pytest.mark.slow

LANGUAGES = ("en", "sw", "hi")
METHODS = {
    "wanda-50": {"name": "wanda", "sparsity": 0.5},
    "sparsegpt-50": {"name": "sparsegpt", "sparsity": 0.5},
    "gptq-3bit-g16-sym": {"name": "gptq", "bits": 3, "group_size": 16, "symmetric": True},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {name: write_architecture(folder / name, name) for name in SIX}


@pytest.fixture(scope="module")
def swept(
    ray_cluster: Cluster, models: dict[str, Path], corpus: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of the sweep. None of the models has a distribution."""
    held_out = write_corpus(tmp_path_factory.mktemp("held-out"), 20, first=HELD_OUT)
    run = {
        "corpus": str(corpus),
        "languages": list(LANGUAGES),
        "segments": 9,
        "sequence_length": 3 * WINDOW,
        "sampling": "equal",
        "evaluation": {"held-out": {"corpus": str(held_out), "segments": 4}},
    }
    grid = {"model": [str(folder) for folder in models.values()], "method": list(METHODS.values())}
    spec = validated(SweepSpec, {"name": "six", "run": run, "grid": grid, "layout": {"stages": 2}, "threads": 1})
    out = tmp_path_factory.mktemp("out")
    predrawn(prepared_runs(spec, out), out)
    result, _ = run_sweep(spec, out)
    assert result.failed == {}
    return out / "six"


def result_of(swept: Path, label: str) -> dict:
    return dict(json.loads((swept / "runs" / label / "result.json").read_text()))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", SIX)
def test_the_checkpoint_has_in_plain_transformers_the_perplexity_that_the_stages_logged(
    name: str, method: str, swept: Path, models: dict[str, Path]
) -> None:
    label = f"{name}-{method}-equal"
    result = result_of(swept, label)
    fingerprint = result["evaluation"]["held-out"]
    segments = SegmentSet.open(swept.parent / "segments" / f"{fingerprint[:16]}.parquet")
    plain = plain_perplexities(swept / "runs" / label / "checkpoint", segments)
    dense = plain_perplexities(models[name], segments)
    assert plain.keys() == dense.keys() == set(LANGUAGES)
    for language in LANGUAGES:
        logged = result["metrics"][f"ppl/{language}"]
        assert logged == pytest.approx(plain[language], rel=1e-6)
        assert logged / result["metrics"][f"ppl_increase/{language}"] == pytest.approx(dense[language], rel=1e-6)
        assert plain[language] != pytest.approx(dense[language], rel=1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", SIX)
def test_linears_of_the_blocks_are_compressed_row_by_row_and_all_else_is_as_it_was(
    name: str, method: str, swept: Path, models: dict[str, Path]
) -> None:
    before = Checkpoint(models[name])
    after = Checkpoint(swept / "runs" / f"{name}-{method}-equal" / "checkpoint")
    assert after.tensors.keys() == before.tensors.keys()
    compressed = 0
    for tensor, info in before.tensors.items():
        assert (after.tensors[tensor].shape, after.tensors[tensor].dtype) == (info.shape, info.dtype)
        dense, now = before.read(tensor), after.read(tensor)
        inside = any(part.isdigit() for part in tensor.split("."))
        if not inside or dense.dim() != 2:
            assert torch.equal(now, dense), tensor
            continue
        compressed += 1
        # What a linear gives is a row of its weight, and a column of what GPT-2 stores.
        rows = now.t() if name == "gpt2" else now
        if method == "gptq-3bit-g16-sym":
            groups = rows.unflatten(1, (-1, 16)).flatten(0, 1)
            assert max(len(group.unique()) for group in groups) <= 8
            assert not torch.equal(now, dense)
        elif method == "wanda-50":
            assert ((rows == 0).sum(dim=1) == rows.shape[1] // 2).all(), tensor
            assert torch.equal(now, dense.where(now != 0, 0))
        else:
            assert int((now == 0).sum()) == now.numel() // 2, tensor
    linears = {"gpt2": 4, "xglm": 6, "opt-post-norm": 6}.get(name, 7)
    assert compressed == 3 * linears


def test_a_run_of_conv1ds_is_exported_as_plain_safetensors_alone(swept: Path) -> None:
    with pytest.raises(InputError, match=r"block 0 attn\.c_attn: a Conv1D"):
        export_run(swept / "runs" / "gpt2-gptq-3bit-g16-sym-equal", "compressed-tensors", None)
    assert not (swept / "runs" / "gpt2-gptq-3bit-g16-sym-equal" / "packed").exists()
    packed = export_run(swept / "runs" / "gemma3-gptq-3bit-g16-sym-equal", "compressed-tensors", None)
    expected = AutoModelForCausalLM.from_pretrained(packed.parents[1] / "checkpoint")
    loaded = AutoModelForCausalLM.from_pretrained(packed)
    ids = torch.arange(3 * WINDOW)[None]
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, expected(ids).logits)
    with safe_open(next(packed.glob("*-00002-of-*.safetensors")), framework="pt") as shard:
        assert any(name.endswith("weight_packed") for name in shard.keys())  # noqa: SIM118
