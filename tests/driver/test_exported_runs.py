"""From a sweep on the cluster to checkpoints that a process without mbs_ray loads: cards, forms, sizes, errors."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from ray.cluster_utils import Cluster
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner, Result

from mbs_ray import __version__
from mbs_ray.cli import app
from mbs_ray.model.checkpoint import Checkpoint
from mbs_ray.run.sweep_spec import SweepSpec, validated
from tests.support.models import HELD_OUT, write_corpus
from tests.support.sweeps import predrawn, prepared_runs, run_sweep

QUANTIZED, PRUNED = "gptq-4bit-g32-refine1-equal", "wanda-50-equal"
LOGITS = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
target, *folders = sys.argv[1:]
found = []
for folder in folders:
    ids = AutoTokenizer.from_pretrained(folder)("The river was high that spring", return_tensors="pt").input_ids
    with torch.no_grad():
        found.append(AutoModelForCausalLM.from_pretrained(folder)(ids).logits)
torch.save(found, target)
assert "mbs_ray" not in sys.modules
"""
EXPORT = """
import sys
from mbs_ray.cli import app
for form in sys.argv[2:]:
    try:
        app(["export", sys.argv[1], "--format", form])
    except SystemExit as end:
        assert end.code == 0, end.code
assert "ray" not in sys.modules
"""


def sweep_once(model: Path, corpus: Path, held_out: Path, out: Path) -> None:
    sweep = {
        "name": "tiny",
        "run": {
            "model": str(model),
            "corpus": str(corpus),
            "languages": ["en", "fr", "sw", "hi"],
            "sampling": "equal",
            "segments": 8,
            "sequence_length": 32,
            "evaluation": {
                "held-out": {"corpus": str(held_out), "segments": 3},
                "again": {"corpus": str(held_out), "segments": 2},
            },
        },
        "grid": {
            "method": [{"name": "gptq", "bits": 4, "group_size": 32, "refine": 1}, {"name": "wanda", "sparsity": 0.5}]
        },
        "layout": {"stages": 2},
        "threads": 1,
    }
    spec = validated(SweepSpec, sweep)
    predrawn(prepared_runs(spec, out), out)
    result, _ = run_sweep(spec, out)
    assert result.failed == {}


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("held-out"), 25, first=HELD_OUT)


@pytest.fixture(scope="module")
def model(hub_bloom: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(hub_bloom, tmp_path_factory.mktemp("model") / "tiny-bloom"))


@pytest.fixture(scope="module")
def runs(
    ray_cluster: Cluster, model: Path, corpus: Path, held_out: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("out")
    sweep_once(model, corpus, held_out, out)
    return out / "tiny" / "runs"


def export(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "160"}).invoke(app, ["export", *(str(argument) for argument in arguments)])


def logits(folder: Path) -> torch.Tensor:
    ids = AutoTokenizer.from_pretrained(folder)("The river was high that spring", return_tensors="pt").input_ids
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder)(ids).logits


def assert_same_logits(*folders: Path) -> None:
    first, *others = map(logits, folders)
    assert others and first.shape[2] == 400
    assert all(torch.equal(first, other) for other in others)


def assert_same_logits_without_us(tmp_path: Path, *folders: Path) -> None:
    """Of checkpoints, in a process that knows transformers alone."""
    target = tmp_path / "logits.pt"
    # From another directory, or the package would lie on the path.
    command = [sys.executable, "-c", LOGITS, str(target), *map(str, folders)]
    subprocess.run(command, check=True, cwd=tmp_path, timeout=120)
    first, *others = torch.load(target, weights_only=True)
    assert others and first.shape[2] == 400
    assert all(torch.equal(first, other) for other in others)


def linear_bytes(folder: Path) -> int:
    """Bytes of the tensors that stand for the weights of the blocks' linears."""
    tensors = {name: info for name, info in Checkpoint(folder).tensors.items() if ".weight" in name}
    linears = ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")
    return sum(
        torch.Size(info.shape).numel() * info.dtype.itemsize
        for name, info in tensors.items()
        if name.split(".")[-2] in linears
    )


def test_a_quantized_run_loads_packed_with_the_logits_of_its_dense_checkpoint(runs: Path, tmp_path: Path) -> None:
    run = runs / QUANTIZED
    result = export(run, "--format", "compressed-tensors")
    assert result.exit_code == 0, result.output
    packed = run / "export" / "compressed-tensors"
    assert result.stdout.strip() == f"written: {packed}"
    assert_same_logits_without_us(tmp_path, packed, run / "checkpoint")
    assert 0.25 <= linear_bytes(packed) / linear_bytes(run / "checkpoint") <= 0.34


def test_a_pruned_run_loads_as_plain_safetensors_and_has_no_packed_form(runs: Path, tmp_path: Path) -> None:
    run = runs / PRUNED
    target = tmp_path / "published"
    result = export(run, "--format", "safetensors", "--to", target)
    assert result.exit_code == 0, result.output
    assert_same_logits(target, run / "checkpoint")
    inodes = [{path.stat().st_ino for path in folder.glob("*.safetensors")} for folder in (target, run / "checkpoint")]
    assert inodes[0] == inodes[1]
    assert not (run / "packed").exists()
    refused = export(run, "--format", "compressed-tensors")
    assert refused.exit_code == 2
    assert "was pruned by wanda" in refused.stderr and "--format safetensors" in refused.stderr


def test_an_export_needs_neither_ray_nor_the_model_the_run_was_made_from(
    runs: Path, model: Path, tmp_path: Path
) -> None:
    moved = Path(shutil.copytree(runs / QUANTIZED, tmp_path / "moved"))
    away = model.rename(model.with_name("away"))
    try:
        command = [sys.executable, "-c", EXPORT, str(moved), "compressed-tensors", "safetensors", "safetensors"]
        subprocess.run(command, check=True, timeout=120, stdout=subprocess.DEVNULL)
    finally:
        away.rename(model)
    assert_same_logits(*(moved / "export" / form for form in ("compressed-tensors", "safetensors")))


def test_every_folder_has_a_card_that_says_what_was_measured_and_no_path(runs: Path, model: Path, corpus: Path) -> None:
    run = runs / QUANTIZED
    assert export(run, "--format", "compressed-tensors").exit_code == 0
    metrics = json.loads((run / "result.json").read_text())["metrics"]
    for folder in (run / "checkpoint", run / "export" / "compressed-tensors", runs / PRUNED / "checkpoint"):
        card = (folder / "README.md").read_text()
        assert yaml.safe_load(card.split("---\n")[1])["language"] == ["en", "fr", "hi", "sw"]
        for path in (runs, model, corpus):
            assert str(path) not in card and f"/{path.parts[1]}/" not in card
        assert "| sw | 2 |" in card and f"made with mbs_ray {__version__}" in card
    card = (run / "checkpoint" / "README.md").read_text()
    assert "- method: gptq: " in card and "bits 4" in card and "group_size 32" in card
    assert f"fingerprint `{json.loads((run / 'signature.json').read_text())['calibration']}`" in card
    for tail, name in (("", "held-out"), ("_again", "again")):
        section = card.split(f"## Perplexity: {name}\n")[1].split("##")[0]
        for language in ("en", "fr", "sw", "hi"):
            row = next(line for line in section.splitlines() if line.startswith(f"| {language} |"))
            _, _, _, now, increase, _, bits, _ = (cell.strip() for cell in row.split("|"))
            assert now == with_interval(metrics, "ppl", tail, language)
            assert increase == with_interval(metrics, "ppl_increase", tail, language)
            assert bits == f"{metrics[f'bpb{tail}/{language}']:.4f}"
        mean = with_interval(metrics, "ppl_increase", tail, "geomean")
        assert f"Geometric mean of the increase: {mean}." in section


def with_interval(metrics: dict[str, float], metric: str, tail: str, language: str) -> str:
    value, low, high = (metrics[f"{metric}{end}{tail}/{language}"] for end in ("", "_ci95_low", "_ci95_high"))
    # An interval of one resampled segment is the value itself, summed in another order.
    assert low - 1e-9 <= value <= high + 1e-9
    return f"{value:.3f} ({low:.3f} … {high:.3f})"


def test_a_run_that_is_only_assembled_again_has_the_same_card_and_checkpoint(
    runs: Path, model: Path, corpus: Path, held_out: Path
) -> None:
    run = runs / QUANTIZED
    before = {path.name: path.read_bytes() for path in (run / "checkpoint").iterdir()}
    facts = (run / "card.json").read_bytes()
    blocks = {path: path.stat().st_mtime_ns for path in run.glob("*/block-*.safetensors")}
    shutil.rmtree(run / "checkpoint")
    (run / "card.json").unlink()
    sweep_once(model, corpus, held_out, runs.parent.parent)
    assert {path.name: path.read_bytes() for path in (run / "checkpoint").iterdir()} == before
    assert (run / "card.json").read_bytes() == facts
    assert {path: path.stat().st_mtime_ns for path in run.glob("*/block-*.safetensors")} == blocks


def test_bad_input_is_one_line_and_code_2(runs: Path, bloom: Path, tmp_path: Path) -> None:
    unfinished = Path(shutil.copytree(runs / QUANTIZED, tmp_path / "unfinished"))
    (unfinished / "result.json").unlink()
    older = Path(shutil.copytree(runs / QUANTIZED, tmp_path / "older"))
    shutil.rmtree(older / "packed")
    full = tmp_path / "full"
    full.mkdir()
    (full / "thesis.txt").write_text("mine")
    file = tmp_path / "file"
    file.write_text("mine")
    for arguments, message in (
        ((runs / QUANTIZED, "--format", "gptq"), "--format gptq: there are compressed-tensors, safetensors"),
        ((tmp_path / "nowhere", "--format", "safetensors"), "nowhere: no run directory"),
        ((bloom, "--format", "safetensors"), "no run directory; give <out>/<sweep>/runs/<run>"),
        ((unfinished, "--format", "safetensors"), "unfinished: the run is not finished"),
        ((older, "--format", "compressed-tensors"), "packed/block-00000.safetensors: missing"),
        ((runs / QUANTIZED, "--format", "safetensors", "--to", full), f"--to {full}: is there already"),
        ((runs / QUANTIZED, "--format", "safetensors", "--to", file), f"--to {file}: is there already"),
        ((runs / QUANTIZED, "--format", "safetensors", "--to", file / "below"), "below: cannot be written"),
    ):
        result = export(*arguments)
        assert result.exit_code == 2, result.output
        assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
        assert message in result.stderr
    assert [path.name for path in full.iterdir()] == ["thesis.txt"] and file.read_text() == "mine"
