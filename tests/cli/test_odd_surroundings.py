"""Commands on odd terminals, odd columns and checkpoints that a hub has touched."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from ray.cluster_utils import Cluster
from typer.testing import CliRunner, Result

from mbs_ray.cli import app
from mbs_ray.cli.inputs import corpus_given, evaluation_sets
from mbs_ray.model.manifest import write_manifest
from mbs_ray.text.corpus import Location, parse_location
from mbs_ray.text.segment_request import SegmentRequest
from tests.support.models import HELD_OUT, documents


def invoke(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "160"}).invoke(app, [str(argument) for argument in arguments])


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "mbs_ray.cli", *arguments]
    return subprocess.run(command, capture_output=True, env={**os.environ, "COLUMNS": "160", **environment})


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp437"])
def test_an_output_that_lacks_letters_shows_others_in_their_place(encoding: str, tmp_path: Path) -> None:
    allocated = ("allocate", "--model", "bigscience/bloom", "--sampling", "equal", "--segments", "20")
    plain, odd = run(*allocated, PYTHONIOENCODING="utf-8"), run(*allocated, PYTHONIOENCODING=encoding)
    assert (plain.returncode, odd.returncode) == (0, 0), odd.stderr.decode()
    rows = [line for line in odd.stdout.decode(encoding).splitlines() if " sw " in line]
    assert len(rows) == 1 and "Swahili" in rows[0]
    refused = run("allocate", "--model", "bigscience/bloom", "--languages", "हिन्दी", PYTHONIOENCODING=encoding)
    assert refused.returncode == 2
    assert refused.stderr.decode(encoding).startswith("error: ") and refused.stderr.count(b"\n") == 1
    assert run("--help", PYTHONIOENCODING=encoding).returncode == 0


def test_verify_says_apart_what_lies_beside_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    write_manifest(tmp_path)
    (tmp_path / ".gitattributes").write_text("*.safetensors filter=lfs diff=lfs merge=lfs -text\n")
    result = invoke("verify", tmp_path)
    assert result.exit_code == 0
    assert "1 files, all as written\nbeside them, not in the manifest: .gitattributes\n" in result.stdout
    (tmp_path / "config.json").write_text("[]")
    result = invoke("verify", tmp_path)
    assert result.exit_code == 2 and "1 of 1 files are wrong: config.json: other content" in result.stderr


def write_columns(folder: Path, first: int = 0) -> Path:
    """A corpus whose text is in `content`; `text` holds what nobody wants scored."""
    folder.mkdir()
    for language in ("en", "sw"):
        lines = [json.dumps({"content": text, "text": "-"}) for text in documents(language, 60, first)]
        (folder / f"{language}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def test_a_text_column_is_told_as_sweep_files_tell_it(tmp_path: Path) -> None:
    assert corpus_given(tmp_path, "text") == str(tmp_path)
    named = corpus_given(tmp_path, "content")
    assert parse_location(named).text_column == "content"
    assert evaluation_sets([tmp_path], 3, "content") == {tmp_path.name: {"corpus": named, "segments": 3}}


def test_a_chat_corpus_is_told_as_sweep_files_tell_it(tmp_path: Path) -> None:
    found = [parse_location(corpus_given(tmp_path, column, "packed")) for column in ("text", "conversations")]
    assert [(one.chat, one.text_column) for one in found] == [("packed", "messages"), ("packed", "conversations")]
    named = {"folder": str(tmp_path), "chat": "packed"}
    assert evaluation_sets([tmp_path], 3, "text", "packed") == {tmp_path.name: {"corpus": named, "segments": 3}}


def test_the_columns_of_one_file_are_two_texts(hub_bloom: Path, tmp_path: Path) -> None:
    """Nothing drawn from the one is taken for the other."""
    folder = str(write_columns(tmp_path / "corpus"))

    def fingerprint(corpus: Location) -> str:
        request = SegmentRequest(corpus, str(hub_bloom), ("en",), {"en": 1}, sequence_length=8)
        return request.fingerprint

    named = {column: fingerprint({"folder": folder, "text_column": column}) for column in ("content", "text")}
    assert named["content"] != named["text"] == fingerprint(folder)


@pytest.mark.slow
def test_the_text_of_another_column_is_scored_compared_and_calibrated_on(
    ray_cluster: Cluster, hub_bloom: Path, tmp_path: Path
) -> None:
    corpus, held_out = write_columns(tmp_path / "corpus"), write_columns(tmp_path / "held-out", HELD_OUT)
    model = Path(shutil.copytree(hub_bloom, tmp_path / "model"))
    how = ("--languages", "en,sw", "--sequence-length", 32, "--threads", 1, "--out", tmp_path / "out")
    alone = ("--stages", 1, "--replicas", 1)
    scored = invoke("evaluate", model, "--corpus", held_out, *how, *alone, "--text-column", "content", "--segments", 4)
    assert scored.exit_code == 0, scored.output
    (file,) = (tmp_path / "out" / "evaluated").rglob("*.parquet")
    assert set(pd.read_parquet(file)["language"]) == {"en", "sw"}
    compressed = invoke(
        "compress", "--model", model, "--corpus", corpus, "--evaluate", held_out, "--evaluation-segments", 2,
        *how, *alone, "--method", "wanda", "--sampling", "equal", "--segments", 4, "--text-column", "content",
    )  # fmt: skip
    assert compressed.exit_code == 0, compressed.output
    alike = invoke("similarity", model, corpus, *how, "--segments", 2, "--text-column", "content")
    assert alike.exit_code == 0, alike.output
    missing = invoke("evaluate", model, "--corpus", held_out, *how, "--text-column", "body")
    assert missing.exit_code == 2 and "has no field 'body'" in missing.stderr
