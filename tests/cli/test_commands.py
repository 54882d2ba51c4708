"""The command line: what it prints, and one clear line with exit code 2 for every bad input."""

import gzip
import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from ray._private.state import actors
from ray.cluster_utils import Cluster
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from mbs_ray.cli import app
from mbs_ray.tracking.mlflow_client import MlflowConnection, database_uri
from tests.support.mlflow_server import listening, wait_until_healthy
from tests.support.models import HELD_OUT, documents, write_corpus

#: Each start of an actor takes several seconds.
ONE_ACTOR = ("--threads", 1, "--stages", 1, "--replicas", 1)


def invoke(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "160"}).invoke(app, [str(argument) for argument in arguments])


@pytest.mark.parametrize(
    "command",
    ["allocate", "compress", "evaluate", "similarity", "sweep", "compare", "report", "export", "verify", "ui"],
)
def test_every_command_has_help_with_an_example(command: str) -> None:
    result = invoke(command, "--help")
    assert result.exit_code == 0
    assert f"Example: mbs {command}" in " ".join(result.stdout.split())


def test_help_waits_for_no_heavy_import() -> None:
    heavy = "torch", "ray", "mlflow", "transformers", "pandas", "pydantic", "matplotlib"
    asked = f"import sys, mbs_ray.cli; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True).stdout.strip() == "[]"
    shown = subprocess.run([sys.executable, "-m", "mbs_ray.cli", "--help"], capture_output=True, text=True)
    assert shown.returncode == 0 and "allocate" in shown.stdout


def test_what_is_read_before_ray_begins_to_start_loads_no_transformers() -> None:
    read = "mbs_ray.run.sweep_spec, mbs_ray.driver.requested_cluster, mbs_ray.run.sweep_checkpoints"
    heavy = "transformers", "datasets", "mlflow", "matplotlib"
    asked = f"import sys, {read}; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True).stdout.strip() == "[]"


class Bad:
    """One bad input: what is done to model, corpus and sweep file, and what the error must name."""

    def __init__(self, spoil: Callable[[Path, Path, dict[str, Any]], None], *names: str) -> None:
        self.spoil, self.names = spoil, names


def _set(**changes: Any) -> Callable[[Path, Path, dict[str, Any]], None]:
    return lambda model, corpus, sweep: sweep.update(changes)


def _empty(model: Path, corpus: Path, sweep: dict[str, Any]) -> None:
    (corpus / "sw.txt").write_text("")


def _truncated(model: Path, corpus: Path, sweep: dict[str, Any]) -> None:
    (corpus / "sw.txt").unlink()
    pq.write_table(pa.table({"text": documents("sw", 60)}), corpus / "sw.parquet")
    content = (corpus / "sw.parquet").read_bytes()
    (corpus / "sw.parquet").write_bytes(content[:-20])


def _no_column(model: Path, corpus: Path, sweep: dict[str, Any]) -> None:
    (corpus / "sw.txt").unlink()
    pq.write_table(pa.table({"content": documents("sw", 60)}), corpus / "sw.parquet")


def _jsonl(corpus: Path, spoiled: bytes) -> bytes:
    (corpus / "sw.txt").unlink()
    lines = [json.dumps({"text": text}).encode() for text in documents("sw", 60)]
    lines[41] = spoiled
    return b"\n".join(lines) + b"\n"


def _invalid_utf8(model: Path, corpus: Path, sweep: dict[str, Any]) -> None:
    (corpus / "sw.jsonl").write_bytes(_jsonl(corpus, b'{"text": "mto \xff umejaa"}'))


def _invalid_json(model: Path, corpus: Path, sweep: dict[str, Any]) -> None:
    with gzip.open(corpus / "sw.jsonl.gz", "wb") as file:
        file.write(_jsonl(corpus, b'{"text": "mto'))


def _no_language(model: Path, corpus: Path, sweep: dict[str, Any]) -> None:
    (corpus / "sw.txt").unlink()


def _missing_shard(model: Path, corpus: Path, sweep: dict[str, Any]) -> None:
    (model / "model-00003-of-00003.safetensors").unlink()


def _nan(model: Path, corpus: Path, sweep: dict[str, Any]) -> None:
    shard = model / "model-00002-of-00003.safetensors"
    tensors = load_file(shard)
    name = next(name for name in sorted(tensors) if name.endswith("dense_h_to_4h.weight"))
    tensors[name][1, 2] = float("nan")
    save_file(tensors, shard, metadata={"format": "pt"})


def _method(**fields: Any) -> Callable[[Path, Path, dict[str, Any]], None]:
    return _set(grid={"method": [fields], "sampling": ["equal"]})


BAD = {
    "unknown language": Bad(_set(languages=["en", "xx"]), "language 'xx': no file in", "en, fr, hi, sw"),
    "language that is no code": Bad(_set(languages=["en", "sr@latin"]), "'sr@latin'", "name it 'sr-latin'"),
    "language that YAML reads": Bad(_set(languages=["en", False]), "languages", "language false", "'no'"),
    "language without text": Bad(_no_language, "'sw'", "corpus"),
    "empty corpus file": Bad(_empty, "sw.txt", "empty"),
    "truncated parquet": Bad(_truncated, "sw.parquet"),
    "parquet without text": Bad(_no_column, "sw.parquet", "text"),
    "missing shard": Bad(_missing_shard, "model-00003-of-00003.safetensors", "missing"),
    "NaN in a weight": Bad(_nan, "dense_h_to_4h.weight", "NaN"),
    "misspelt key": Bad(_set(segmants=3), "sweep.yaml", "segmants", "no such field"),
    "m does not divide": Bad(_method(name="sparsegpt", pattern="2:5"), "block 0 self_attention.query_key_value", "5"),
    "bits 1": Bad(_method(name="gptq", bits=1), "bits"),
    "group does not divide": Bad(_method(name="gptq", bits=4, group_size=24), "query_key_value", "24"),
    "sequence too long": Bad(_set(sequence_length=129), "sequence_length", "128"),
    "fewer segments than languages": Bad(_set(segments=3), "3 segments", "4 languages"),
    "model that is not there": Bad(_set(model="./nowhere"), "nowhere", "no such folder"),
    "evaluation text that is not there": Bad(_set(evaluation={"v": {"corpus": "./gone"}}), "gone"),
}


#: Text is read, and so checked, where it is drawn.
BAD_TEXT = {
    "invalid UTF-8 in jsonl": Bad(_invalid_utf8, "sw.jsonl", "line 42", "UTF-8"),
    "invalid JSON in jsonl": Bad(_invalid_json, "sw.jsonl.gz", "line 42"),
}


def refused(bad: Bad, model: Path, folder: Path, segments: int) -> set[str]:
    """The classes of the actors that a sweep over spoilt input has started before it ends in one line."""
    model = Path(shutil.copytree(model, folder / "model"))
    corpus = write_corpus(folder / "corpus")
    sweep: dict[str, Any] = {
        "name": "bad",
        "model": "model",
        "corpus": "corpus",
        "languages": ["en", "fr", "hi", "sw"],
        "segments": segments,
        "sequence_length": 32,
        "grid": {"method": ["wanda"], "sampling": ["equal"]},
    }
    bad.spoil(model, corpus, sweep)
    (folder / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    before = set(actors())
    result = invoke("sweep", folder / "sweep.yaml", "--out", folder / "out")
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    for name in bad.names:
        assert name in result.stderr
    return {actor["ActorClassName"] for key, actor in actors().items() if key not in before}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_code_2_before_any_actor_starts(
    case: str, ray_cluster: Cluster, hub_bloom: Path, tmp_path: Path
) -> None:
    assert refused(BAD[case], hub_bloom, tmp_path, segments=8) == set()
    assert not (tmp_path / "out" / "bad").exists()


@pytest.mark.parametrize("case", BAD_TEXT)
def test_bad_text_is_one_line_and_code_2_before_any_stage_starts(
    case: str, ray_cluster: Cluster, hub_bloom: Path, tmp_path: Path
) -> None:
    # So many segments that all text is read.
    started = refused(BAD_TEXT[case], hub_bloom, tmp_path, segments=400)
    assert "Stage" not in started
    assert not list((tmp_path / "out").rglob("*.safetensors")) and not list((tmp_path / "out").rglob("*.parquet"))


@pytest.mark.slow
def test_the_same_input_unspoilt_compresses(ray_cluster: Cluster, hub_bloom: Path, tmp_path: Path) -> None:
    corpus, held_out = write_corpus(tmp_path / "corpus"), write_corpus(tmp_path / "held-out", first=HELD_OUT)
    common = ("--model", hub_bloom, "--corpus", corpus, "--languages", "en,fr,hi,sw", "--segments", 8)
    options = ("--sequence-length", 32, *ONE_ACTOR, "--evaluate", held_out, "--evaluation-segments", 2)
    before = set(actors())
    measured = ("--method", "wanda:pattern=2:4", "--per-language", "--true-sequential")
    result = invoke("compress", *common, *options, *measured, "--out", tmp_path / "out")
    assert "Stage" in {actor["ActorClassName"] for key, actor in actors().items() if key not in before}
    assert result.exit_code == 0, result.output
    run = tmp_path / "out" / "compress" / "runs" / "wanda-2-4-proportional"
    assert (run / "checkpoint" / "config.json").is_file()
    signature = json.loads((run / "signature.json").read_text())
    assert (signature["true_sequential"], signature["per_language"]) == (True, True)
    assert set(pd.read_parquet(run / "layer_errors.parquet")["language"]) == {"en", "fr", "hi", "sw"}
    assert "geomean" in result.stdout
    evaluated = invoke(
        "evaluate", hub_bloom, "--corpus", corpus, "--languages", "sw", "--sequence-length", 32,
        *ONE_ACTOR, "--out", tmp_path / "out", "--join", "blank_line",
    )  # fmt: skip
    assert evaluated.exit_code == 0, evaluated.output
    drawn = [json.loads(pq.read_schema(path).metadata[b"mbs_ray"]) for path in tmp_path.glob("out/segments/*.parquet")]
    assert [one["request"]["join"] for one in drawn if one["allocation"].keys() == {"sw"}] == ["blank_line"]
    assert "bits per byte" in evaluated.stdout and "sw" in evaluated.stdout


def test_statistics_are_read_like_a_method_and_refused_by_the_field_they_clash_with(tmp_path: Path) -> None:
    common = ("compress", "--model", tmp_path, "--corpus", tmp_path, "--method", "wanda", "--out", tmp_path / "out")
    for options, message in (
        (("--statistics", "dense:segments_per_language=4", "--true-sequential"), "error: true_sequential: "),
        (("--statistics", "dense:segments_per_language=0"), "error: statistics.segments_per_language: "),
        (("--statistics", "sparse"), "error: statistics: "),
    ):
        result = invoke(*common, *options)
        assert result.exit_code == 2 and result.stderr.startswith(message), result.output


def test_an_evaluation_set_that_shares_documents_with_the_calibration_is_refused_before_a_run_begins(
    ray_cluster: Cluster, hub_bloom: Path, tmp_path: Path
) -> None:
    corpus = write_corpus(tmp_path / "corpus")
    common = ("--model", hub_bloom, "--corpus", corpus, "--languages", "en,fr,hi,sw", "--segments", 8)
    options = ("--sequence-length", 32, "--threads", 1, "--evaluate", corpus, "--evaluation-segments", 40)
    result = invoke("compress", *common, *options, "--method", "wanda", "--out", tmp_path / "out")
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("error: evaluation.corpus: language 'en' shares ")
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out" / "compress").exists()


def test_a_relative_out_is_refused_inside_a_ray_job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump({"name": "x", "model": "m", "corpus": "c",
        "grid": {"method": ["rtn"], "sampling": ["equal"]}}))  # fmt: skip
    result = invoke("sweep", tmp_path / "sweep.yaml", "--out", "results")
    assert result.exit_code == 2
    assert "inside a Ray job give an absolute folder" in result.stderr


@pytest.mark.slow
def test_ui_serves_mlflow_on_loopback(tmp_path: Path) -> None:
    MlflowConnection(database_uri(tmp_path), "experiment", tmp_path / "artifacts")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mbs_ray.cli", "ui", str(tmp_path), "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            wait_until_healthy(port, server)
            assert listening(port) == ["0100007F"]
        finally:
            server.terminate()


def test_ui_refuses_a_folder_without_a_database(tmp_path: Path) -> None:
    result = invoke("ui", tmp_path)
    assert result.exit_code == 2 and "no mlflow.db" in result.stderr
