"""Bytes per token of a language: counted over text from all over its corpus, and the allocation that comes of them."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mbs_ray.cli import app
from mbs_ray.errors import InputError
from mbs_ray.run.sweep_spec import SweepSpec, validated
from mbs_ray.text.bytes_per_token import SAMPLE, UNITS, bytes_per_token
from mbs_ray.text.corpus import open_corpus
from mbs_ray.text.segment_request import TextSources
from mbs_ray.text.tokenization import DocumentTokenizer
from tests.support.sweeps import prepared_runs


@pytest.fixture(scope="module")
def plain(tokenizer: Path) -> DocumentTokenizer:
    return DocumentTokenizer(str(tokenizer))


def write(folder: Path, language: str, texts: list[str]) -> None:
    folder.mkdir(exist_ok=True)
    lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
    (folder / f"{language}.jsonl").write_text(lines, encoding="utf-8")


def test_of_a_small_corpus_all_text_is_counted(plain: DocumentTokenizer, tmp_path: Path) -> None:
    texts = [f"sentence number {number}, é and ü" for number in range(50)]
    write(tmp_path, "en", texts)
    tokens = sum(len(plain.tokenizer(text, add_special_tokens=False)["input_ids"]) + 1 for text in texts)
    count = sum(len(text.encode()) for text in texts)
    assert bytes_per_token(open_corpus(str(tmp_path), ["en"]), "en", plain) == count / tokens


def test_of_a_large_one_a_part_of_many_places(plain: DocumentTokenizer, tmp_path: Path) -> None:
    """Each shard has text of another kind, and none of them is left out, nor read for long."""
    folder = tmp_path / "en"
    folder.mkdir()
    for shard in range(2 * UNITS):
        write(folder, f"{shard:02}", ["ab " * 40_000 if shard % 2 else "zxqj" * 30_000])
    (both,) = TextSources().bytes_per_token(str(tmp_path), plain.tokenizer.name_or_path, ["en"]).values()
    assert both == bytes_per_token(open_corpus(str(tmp_path), ["en"]), "en", plain)
    part = SAMPLE // UNITS
    seen = [("ab " * part)[:part], ("zxqj" * part)[:part]]
    rates = [part / len(plain.tokenizer(text)["input_ids"]) for text in seen]
    assert min(rates) * 0.999 <= both <= max(rates)


def test_one_document_of_many_units_is_found(plain: DocumentTokenizer, tmp_path: Path) -> None:
    """Without blank lines a file is one document, which counts in the unit that it begins in."""
    folder = tmp_path / "en"
    folder.mkdir()
    for shard in range(3 * UNITS):
        write(folder, f"{shard:02}", ["quick brown fox " * 5000 if shard == 2 else ""])
    (found,) = TextSources().bytes_per_token(str(tmp_path), plain.tokenizer.name_or_path, ["en"]).values()
    text = ("quick brown fox " * 5000)[:SAMPLE]
    assert found == len(text) / (len(plain.tokenizer(text, add_special_tokens=False)["input_ids"]) + 1)


def test_a_language_without_text_is_named(plain: DocumentTokenizer, tmp_path: Path) -> None:
    write(tmp_path, "sw", ["", ""])
    with pytest.raises(InputError, match="language 'sw': the corpus has no text"):
        bytes_per_token(open_corpus(str(tmp_path), ["sw"]), "sw", plain)


def test_runs_and_the_command_share_segments_by_tokens(bloom: Path, corpus: Path, tmp_path: Path) -> None:
    known = tmp_path / "distribution.json"
    amounts = {"en": 5e9, "hi": 5e9, "sw": 1e9}
    known.write_text(json.dumps({"source": "here", "unit": "bytes", "languages": amounts}))
    rates = TextSources().bytes_per_token(str(corpus), str(bloom), list(amounts))
    expected = {code: amount / rates[code] for code, amount in amounts.items()}
    run = {
        "model": str(bloom), "corpus": str(corpus), "languages": list(amounts), "distribution": str(known),
        "segments": 40, "sequence_length": 8, "method": "wanda",
    }  # fmt: skip
    samplings = ["proportional", {"name": "proportional", "unit": "tokens"}]
    sweep = validated(SweepSpec, {"name": "units", "run": run, "grid": {"sampling": samplings}})
    paper, tokens = prepared_runs(sweep, tmp_path)
    assert paper.label != tokens.label and tokens.label.endswith("proportional-tokens")
    assert paper.allocation != tokens.allocation
    total = sum(expected.values())
    for code, count in tokens.allocation.items():
        assert abs(count - 40 * expected[code] / total) <= 1
    command = ["allocate", "--model", str(bloom), "--languages", ",".join(amounts), "--distribution", str(known)]
    command += ["--sampling", "proportional:unit=tokens", "--segments", "40"]
    result = CliRunner().invoke(app, [*command, "--corpus", str(corpus)])
    assert result.exit_code == 0, result.output
    shown = [[cell.strip() for cell in line.split("│")[1:-1]] for line in result.stdout.splitlines() if "│" in line]
    assert {row[0]: int(row[3]) for row in shown if row[0] in amounts} == tokens.allocation
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2 and "give --corpus" in result.stderr
