"""A corpus is opened once per command, read through once for all commands, and known by its bytes alone."""

import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest

from mbs_ray.errors import InputError
from mbs_ray.run.prepare import CheckedTexts
from mbs_ray.text.corpus import OpenedCorpora, open_corpus
from tests.support.texts import request, some_texts, write_jsonl

SHARDS, RUNS = 200, 15


def bytes_read() -> int:
    """Of this process, counted by the kernel."""
    return int(Path("/proc/self/io").read_text().split()[1])


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Two hundred shards of 20 KB, written an hour ago."""
    folder = tmp_path / "corpus" / "en"
    folder.mkdir(parents=True)
    for shard in range(SHARDS):
        write_jsonl(folder / f"{shard:03d}.jsonl", some_texts("en", 55, seed=shard))
        age(folder / f"{shard:03d}.jsonl")
    return tmp_path / "corpus"


def age(path: Path) -> None:
    os.utime(path, (time.time() - 3600,) * 2)


def test_fifteen_runs_read_a_corpus_once_and_the_next_command_does_not(
    corpus: Path, tmp_path: Path, tokenizer: Path
) -> None:
    size = sum(path.stat().st_size for path in (corpus / "en").iterdir())
    requests = [request(corpus, tokenizer, {"en": 30 + run % 3}, seed=run // 3) for run in range(RUNS)]
    fingerprints = []
    for limit in (1.5 * size, 0.1 * size):
        texts = CheckedTexts(tmp_path / "cache")
        # Another corpus, whose opening loads tokenizer and libraries: bytes that are not to be counted.
        write_jsonl(tmp_path / "en.jsonl", some_texts("en", 5))
        texts.check(request(tmp_path, tokenizer, {"en": 2}))
        before = bytes_read()
        checked = [texts.check(one) for one in requests]
        # A pool of several runs' languages is made of one of their requests.
        checked += [replace(checked[0], allocation={"en": 33})]
        fingerprints.append([one.fingerprint for one in checked])
        assert bytes_read() - before < limit
    assert fingerprints[0] == fingerprints[1] and len(set(fingerprints[0])) == RUNS + 1


def test_a_copy_of_a_large_file_is_the_same_corpus_and_one_changed_byte_another(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    line = b'{"text": "' + b"mto ulikuwa umejaa " * 3000 + b'"}\n'
    (tmp_path / "one" / "sw.jsonl").write_bytes(line * (70 * 2**20 // len(line)))
    shutil.copyfile(tmp_path / "one" / "sw.jsonl", tmp_path / "two" / "sw.jsonl")
    age(tmp_path / "two" / "sw.jsonl")
    one, two = (open_corpus(tmp_path / name, ["sw"]).identity for name in ("one", "two"))
    assert one == two
    with (tmp_path / "two" / "sw.jsonl").open("r+b") as file:
        file.seek(33_333_333)
        file.write(b"X")
    assert open_corpus(tmp_path / "two", ["sw"]).identity != one


def test_a_file_changed_in_place_is_read_again_even_within_the_same_second(corpus: Path, tmp_path: Path) -> None:
    shard = corpus / "en" / "007.jsonl"
    first = OpenedCorpora(tmp_path / "cache").open(corpus, ["en"]).identity
    content = shard.read_bytes()
    shard.write_bytes(content.swapcase())
    shard.write_bytes(content.replace(b"river", b"RIVER"))
    second = OpenedCorpora(tmp_path / "cache").open(corpus, ["en"]).identity
    shard.write_bytes(content.replace(b"spring", b"SPRING"))
    os.utime(shard, ns=(shard.stat().st_atime_ns, shard.stat().st_mtime_ns))
    third = OpenedCorpora(tmp_path / "cache").open(corpus, ["en"]).identity
    assert len({str(one) for one in (first, second, third)}) == 3
    shard.write_bytes(content)
    assert OpenedCorpora(tmp_path / "cache").open(corpus, ["en"]).identity == first


@pytest.mark.parametrize("damage", [b"", b"[]", b'{"000.jsonl\\ntext text": {"state": 3}}', b"\xff"])
def test_a_damaged_cache_costs_reading_the_files_again(corpus: Path, tmp_path: Path, damage: bytes) -> None:
    first = OpenedCorpora(tmp_path / "cache").open(corpus, ["en"]).identity
    (stored,) = (tmp_path / "cache" / "corpora").iterdir()
    stored.write_bytes(damage)
    assert OpenedCorpora(tmp_path / "cache").open(corpus, ["en"]).identity == first
    assert stored.stat().st_size > 1000


def test_a_cached_file_is_asked_for_another_field_anew(corpus: Path, tmp_path: Path) -> None:
    corpora = OpenedCorpora(tmp_path / "cache")
    corpora.open(corpus, ["en"])
    with pytest.raises(InputError, match=r"jsonl: line 1 has no field 'content'"):
        corpora.open({"folder": str(corpus), "text_column": "content"}, ["en"])
