"""Segments through Ray Data and on disk: the bits of the plain process, reused only when nothing changed."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
from ray.cluster_utils import Cluster

from mbs_ray.errors import InputError
from mbs_ray.text import segment_file
from mbs_ray.text.corpus import open_corpus
from mbs_ray.text.here import reading_bytes
from mbs_ray.text.ray_data import gather
from mbs_ray.text.segment_draw import check_request, draw_per_language, draw_segments, fill, language_draws, recipe_of
from mbs_ray.text.segment_file import Segments, SegmentSet
from mbs_ray.text.segment_request import SegmentRequest
from mbs_ray.text.tokenization import DocumentTokenizer
from tests.support.texts import drawn_here, request, rows_of, some_texts, write_jsonl, write_parquet, write_txt

LANGUAGES = ("en", "zh-Hans", "hi", "sw")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four languages in three formats; the row groups of Swahili are too small for a segment."""
    folder = tmp_path_factory.mktemp("corpus")
    for shard in range(3):
        write_parquet(folder / "en" / f"{shard}.parquet", some_texts("en", 40, seed=shard), 5)
    write_jsonl(folder / "zh-Hans.jsonl.zst", some_texts("zh-Hans", 60))
    write_txt(folder / "hi.txt", some_texts("hi", 60))
    write_parquet(folder / "sw.parquet", some_texts("sw", 60, words=8), 1)
    return folder


ALLOCATION = {"sw": 12, "en": 30, "hi": 10, "zh-Hans": 8}


@pytest.fixture(scope="module")
def drawn(ray_cluster: Cluster, corpus: Path, tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> SegmentSet:
    return draw_segments(request(corpus, tokenizer, ALLOCATION), tmp_path_factory.mktemp("segments"), here_bytes=0)


def token_rows(segments: Segments) -> list[tuple[int, ...]]:
    return [tuple(row) for row in segments.token_ids.tolist()]


def test_ray_gives_the_segments_of_the_plain_process(drawn: SegmentSet, corpus: Path, tokenizer: Path) -> None:
    here = drawn_here(request(corpus, tokenizer, ALLOCATION))
    segments = drawn.read()
    assert segments.language == [language for language, result in here.items() for _ in result.segments]
    expected = [segment for result in here.values() for segment in result.segments]
    assert token_rows(segments) == [tuple(segment.token_ids.tolist()) for segment in expected]
    assert segments.document_index.tolist() == [segment.document_index.tolist() for segment in expected]
    assert segments.bytes.tolist() == [segment.bytes.tolist() for segment in expected]
    assert segments.documents == [list(segment.documents) for segment in expected]
    assert drawn.facts == {language: result.facts for language, result in here.items()}


def test_little_text_is_drawn_in_this_process_and_gives_the_same_file(
    drawn: SegmentSet, corpus: Path, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = request(corpus, tokenizer, ALLOCATION)
    asks = [ask for draw in language_draws(asked).values() for ask in draw.asks()]
    size = reading_bytes(asked.opened.shards, asks)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(RuntimeError, match=r"ray\.init"):
        draw_segments(asked, tmp_path, here_bytes=size - 1)
    assert draw_segments(asked, tmp_path, here_bytes=size).path.read_bytes() == drawn.path.read_bytes()


def test_the_file_is_named_by_its_fingerprint_and_ordered_by_language(drawn: SegmentSet) -> None:
    assert drawn.path.name == f"{drawn.fingerprint[:16]}.parquet"
    assert list(drawn.allocation.items()) == [("en", 30), ("zh-Hans", 8), ("hi", 10), ("sw", 12)]
    segments = drawn.read()
    assert len(segments) == len(drawn) == 60
    assert (segments.token_ids.dtype, segments.token_ids.shape) == (np.int32, (60, 32))
    assert (segments.document_index.dtype, segments.bytes.dtype) == (np.int16, np.uint32)
    for row, documents in enumerate(segments.documents):
        assert all(document.startswith(segments.language[row]) for document in documents)
        assert set(segments.document_index[row].tolist()) - {-1} == set(range(len(documents)))
        assert (segments.bytes[row][segments.document_index[row] < 0] == 0).all()


def test_languages_drawn_apart_are_those_drawn_together_one_file_each_and_only_missing_ones_are_drawn(
    drawn: SegmentSet, corpus: Path, tokenizer: Path, tmp_path: Path
) -> None:
    together, segments = request(corpus, tokenizer, ALLOCATION), drawn.read()
    some = request(corpus, tokenizer, {"en": 30, "sw": 12})
    first = draw_per_language(some, tmp_path)
    written = {one.path: one.path.stat().st_mtime_ns for one in first.values()}
    apart = draw_per_language(together, tmp_path)
    assert list(apart) == list(LANGUAGES) and len(list(tmp_path.iterdir())) == len(LANGUAGES)
    assert {path: path.stat().st_mtime_ns for path in written} == written
    for language, one in apart.items():
        own = [row for row, spoken in zip(token_rows(segments), segments.language, strict=True) if spoken == language]
        assert one.allocation == {language: ALLOCATION[language]} and token_rows(one.read()) == own
        assert one.fingerprint == request(corpus, tokenizer, {language: ALLOCATION[language]}).fingerprint
    assert first["sw"].fingerprint == apart["sw"].fingerprint


@pytest.mark.slow
def test_parallelism_changes_no_bit(ray_cluster: Cluster, drawn: SegmentSet, corpus: Path, tokenizer: Path) -> None:
    asked = request(corpus, tokenizer, ALLOCATION)
    draws = language_draws(asked)
    fill(draws, partial(gather, asked.opened.shards, recipe_of(asked), 2), None)
    rows = [row for draw in draws.values() for row in rows_of(draw.finish())]
    assert rows == token_rows(drawn.read())


def test_an_equal_request_reuses_the_file_and_a_damaged_one_is_drawn_again(
    drawn: SegmentSet, corpus: Path, tokenizer: Path
) -> None:
    written = drawn.path.stat().st_mtime_ns
    content = drawn.path.read_bytes()
    assert draw_segments(request(str(corpus), tokenizer, ALLOCATION), drawn.path.parent) == drawn
    assert drawn.path.stat().st_mtime_ns == written
    drawn.path.write_bytes(content[: len(content) // 2])
    steps: list[tuple[int, int]] = []
    again = draw_segments(
        request(corpus, tokenizer, ALLOCATION), drawn.path.parent, lambda done, asked: steps.append((done, asked))
    )
    assert again == drawn and drawn.path.read_bytes() == content
    assert [done for done, _ in steps] == list(range(1, len(steps) + 1))
    assert steps[-1][0] == steps[-1][1] == sum(facts["units_read"] for facts in drawn.facts.values())
    assert [path.name for path in drawn.path.parent.iterdir()] == [drawn.path.name]


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"sequence_length": 31},
        {"allow_repeat": True},
        {"allocation": {**ALLOCATION, "sw": 11}},
        {"allocation": None},
        {"allocation": None, "at_most": 12},
        {"join": "blank_line"},
    ],
)
def test_any_change_of_the_request_changes_the_fingerprint(
    corpus: Path, tokenizer: Path, change: dict[str, Any]
) -> None:
    asked = request(corpus, tokenizer, ALLOCATION)
    assert replace(asked, **change).fingerprint != asked.fingerprint


def test_all_text_in_its_order_keeps_the_fingerprint_of_the_time_before_blank_lines(
    corpus: Path, tokenizer: Path
) -> None:
    asked = SegmentRequest(corpus, str(tokenizer), ("en", "hi"), None, 32)
    then = {
        "format": 1,
        "corpus": open_corpus(corpus, ["en", "hi"]).identity,
        "tokenizer": DocumentTokenizer(str(tokenizer)).facts().digest,
        "allocation": None,
        "at_most": None,
        "sequence_length": 32,
        "seed": None,
        "allow_repeat": None,
    }
    assert asked.fingerprint == hashlib.sha256(json.dumps(then, sort_keys=True).encode()).hexdigest()


def test_text_tokenizer_and_nothing_else_change_the_fingerprint(
    tmp_path: Path, tokenizer: Path, beginning_tokenizer: Path
) -> None:
    def fingerprint(texts: Sequence[str], with_tokenizer: Path, folder: str) -> str:
        write_parquet(tmp_path / folder / "en.parquet", texts, 5)
        return request(tmp_path / folder, with_tokenizer, {"en": 3}).fingerprint

    texts = some_texts("en", 20)
    first = fingerprint(texts, tokenizer, "a")
    assert fingerprint(texts, tokenizer, "b") == first
    assert fingerprint([*texts[:-1], texts[-1].swapcase()], tokenizer, "b") != first
    assert fingerprint(texts, beginning_tokenizer, "b") != first


def test_all_text_has_one_fingerprint_whatever_the_seed(corpus: Path, tokenizer: Path) -> None:
    whole = [SegmentRequest(corpus, str(tokenizer), ("en",), None, 32, seed=seed).fingerprint for seed in (0, 1)]
    assert whole[0] == whole[1]
    few = [SegmentRequest(corpus, str(tokenizer), ("en",), None, 32, seed, at_most=3).fingerprint for seed in (0, 1)]
    assert few[0] != few[1]


def test_rows_read_alone_are_the_rows_of_all(
    drawn: SegmentSet, corpus: Path, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segment_file, "ROW_GROUP_TOKENS", 32 * 7)
    asked = request(corpus, tokenizer, ALLOCATION)
    small = segment_file.write_segments(tmp_path / "x.parquet", "f", {"sequence_length": 32}, drawn_here(asked))
    assert pq.read_metadata(small.path).num_row_groups == 9
    everything = drawn.read()
    for start, stop in [(0, 1), (0, 60), (6, 8), (7, 14), (13, 41), (59, 60)]:
        some = small.rows(start, stop)
        assert (some.token_ids == everything.token_ids[start:stop]).all()
        assert (some.document_index == everything.document_index[start:stop]).all()
        assert (some.bytes == everything.bytes[start:stop]).all()
        assert some.language == everything.language[start:stop]
        assert some.documents == everything.documents[start:stop]
        assert (small.token_ids(start, stop) == some.token_ids).all()
    with pytest.raises(IndexError):
        small.rows(59, 61)


def test_an_error_in_text_that_only_a_task_reads_reaches_the_driver_as_it_is(
    ray_cluster: Cluster, tmp_path: Path, tokenizer: Path
) -> None:
    write_jsonl(tmp_path / "en.jsonl", some_texts("en", 20))
    write_jsonl(tmp_path / "sw.jsonl", some_texts("sw", 20))
    with (tmp_path / "sw.jsonl").open("ab") as file:
        file.write(b'{"text": "caf\xe9"}\n')
    asked = request(tmp_path, tokenizer, {"en": 2, "sw": 30})
    with pytest.raises(InputError, match=r"sw\.jsonl: line 21 is not valid UTF-8") as error:
        draw_segments(asked, tmp_path / "segments", here_bytes=0)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "segments").exists()
    check_request(asked)  # by which only the first document is read


def test_too_little_text_names_language_and_numbers(tmp_path: Path, tokenizer: Path) -> None:
    write_txt(tmp_path / "sw.txt", some_texts("sw", 3))
    with pytest.raises(InputError, match=r"'sw': the corpus gives \d+ segments of 32 tokens, 500 were asked for"):
        draw_segments(request(tmp_path, tokenizer, {"sw": 500}), tmp_path)


def test_all_formats_give_the_same_segments(tmp_path: Path, tokenizer: Path) -> None:
    texts = some_texts("hi", 40)
    drawn = []
    for place, suffix in enumerate((".parquet", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".txt")):
        folder = tmp_path / str(place)
        folder.mkdir()
        if suffix == ".parquet":
            write_parquet(folder / "hi.parquet", texts, 1000)
        elif suffix == ".txt":
            write_txt(folder / "hi.txt", texts)
        else:
            write_jsonl(folder / f"hi{suffix}", texts)
        drawn.append(rows_of(drawn_here(request(folder, tokenizer, {"hi": 60}))["hi"]))
    assert all(rows == drawn[0] for rows in drawn)


def test_a_good_request_passes_its_checks_without_ray(corpus: Path, tokenizer: Path) -> None:
    check_request(request(corpus, tokenizer, ALLOCATION))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sequence_length": 1}, "at least 2 tokens"),
        ({"sequence_length": 0}, "at least 2 tokens"),
        ({"seed": -1}, "seed -1"),
        ({"allocation": {"en": 0}, "languages": ("en",)}, "'en': 0 segments"),
        ({"allocation": {"en": 3}}, "allocation is for en, the languages are sw"),
        ({"allocation": None, "languages": ()}, "no language"),
        ({"allocation": None, "at_most": 0}, "0 segments per language"),
    ],
)
def test_a_request_that_makes_no_sense_is_one_line(
    corpus: Path, tokenizer: Path, change: dict[str, Any], message: str
) -> None:
    asked = request(corpus, tokenizer, ALLOCATION)
    with pytest.raises(InputError, match=message):
        replace(asked, **change)


def test_a_file_of_something_else_is_no_set_of_segments(corpus: Path) -> None:
    with pytest.raises(InputError, match=r"sw\.parquet: not a file of segments"):
        SegmentSet.open(corpus / "sw.parquet")
