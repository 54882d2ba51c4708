"""Segments of a tokenizer that begins every text with a token: exactly one at the head of each, and none elsewhere."""

import hashlib
import json
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mbs_ray.errors import InputError
from mbs_ray.evaluation.token_scores import write_token_scores
from mbs_ray.text import segment_request
from mbs_ray.text.segment_file import write_segments
from mbs_ray.text.segment_request import SegmentRequest
from mbs_ray.text.tokenization import DocumentTokenizer
from mbs_ray.tracking.tracked_texts import dataset_input
from tests.support.texts import drawn_here, request, some_texts, write_parquet
from tests.text.conftest import save_tokenizer

BLOOM = Path(str(files("mbs_ray"))) / "mini/models/bloom-mini-2m"
LENGTH = 32
WANTED: list[dict[str, Any]] = [
    {},
    {"allocation": None},
    {"allocation": None, "at_most": 5},
    {"allocation": {"en": 40}, "allow_repeat": True},
    {"allocation": None, "join": "blank_line"},
    {"allocation": None, "at_most": 5, "join": "blank_line"},
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    write_parquet(folder / "en.parquet", some_texts("en", 12), 1000)
    return folder


@pytest.mark.parametrize("wanted", WANTED, ids=str)
def test_every_segment_begins_with_exactly_one_that_is_context(
    corpus: Path, beginning_tokenizer: Path, wanted: dict[str, Any]
) -> None:
    asked = replace(request(corpus, beginning_tokenizer, {"en": 7}), **wanted)
    segments = drawn_here(asked)["en"].segments
    assert len(segments) >= 5
    for segment in segments:
        assert len(segment) == LENGTH and segment.token_ids[0] == 0 and 0 not in segment.token_ids[1:]
        assert (segment.document_index[0], segment.bytes[0]) == (-1, 0)


@pytest.mark.parametrize("join", ["end_token", "blank_line"])
def test_besides_it_they_are_the_segments_of_the_same_tokenizer_without_it(
    corpus: Path, tokenizer: Path, beginning_tokenizer: Path, tmp_path: Path, join: str
) -> None:
    asked = SegmentRequest(corpus, str(beginning_tokenizer), ("en",), None, LENGTH, join=join)  # type: ignore[arg-type]
    without = replace(asked, tokenizer=str(tokenizer), sequence_length=LENGTH - 1)
    ours, plain = drawn_here(asked)["en"], drawn_here(without)["en"]
    assert ours.facts == plain.facts
    assert [one.token_ids[1:].tolist() for one in ours.segments] == [one.token_ids.tolist() for one in plain.segments]
    # All text of it is scored, its first token too, and all its bytes count.
    written = write_segments(tmp_path / "x.parquet", "f", {"sequence_length": LENGTH}, {"en": ours})
    write_token_scores(tmp_path / "scores.parquet", written, torch.ones(len(written), LENGTH - 1))
    import pyarrow.parquet as pq

    table = pq.read_table(tmp_path / "scores.parquet")
    assert sum(table["bytes"].to_pylist()) == sum(int(one.bytes.sum()) for one in plain.segments)
    assert table.num_rows == sum(int((one.document_index >= 0).sum()) for one in plain.segments)


def test_documents_are_parted_by_one_end_token_where_it_is_also_what_begins_a_text(
    corpus: Path, tmp_path: Path
) -> None:
    first = save_tokenizer(tmp_path / "xglm", "</s> $A")
    asked = SegmentRequest(corpus, str(first), ("en",), None, LENGTH)
    stream = [token for one in drawn_here(asked)["en"].segments for token in one.token_ids[1:].tolist()]
    assert stream.count(1) >= 10
    assert all(token != 1 for token, before in zip(stream[1:], stream, strict=False) if before == 1)


def test_several_begin_a_segment_where_the_tokenizer_puts_several(corpus: Path, tmp_path: Path) -> None:
    two = save_tokenizer(tmp_path / "two", "<s> </s> $A")
    asked = request(corpus, two, {"en": 4})
    assert {tuple(one.token_ids[:2].tolist()) for one in drawn_here(asked)["en"].segments} == {(0, 1)}
    with pytest.raises(InputError, match="sequence length 2: the tokenizer begins every segment with 2 tokens"):
        drawn_here(replace(asked, sequence_length=2))


def test_it_is_in_the_fingerprint_and_in_what_mlflow_is_told_and_where_there_is_none_in_neither(
    corpus: Path, tokenizer: Path, beginning_tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, plain = (request(corpus, one, {"en": 4}) for one in (beginning_tokenizer, tokenizer))
    assert json.loads(dataset_input("x", ours, "calibration").dataset.profile)["begin"] == [0]
    assert "begin" not in json.loads(dataset_input("x", plain, "calibration").dataset.profile)
    fingerprint = ours.fingerprint
    told = ours.tokenizer_facts._replace(begin=(3,))
    again = request(corpus, beginning_tokenizer, {"en": 4})
    again.__dict__["tokenizer_facts"] = told
    assert again.fingerprint != fingerprint
    # What an earlier version drew for BLOOM is found again, but for what the version says itself.
    monkeypatch.setattr(segment_request, "FORMAT", 1)
    bloom = SegmentRequest("x", str(BLOOM), ("en", "sw"), {"en": 3, "sw": 5}, 256, seed=1)
    bloom.__dict__["opened"] = SimpleNamespace(identity=[["en", "en.txt", "12"]])
    assert bloom.fingerprint == LITERAL
    then = {
        "format": 1,
        "corpus": [["en", "en.txt", "12"]],
        "tokenizer": "bd5eb7517486e5b5fb2b9b2c8d0a9e8523223839d3a628d3bfe24538a2b6a251",
        "allocation": {"en": 3, "sw": 5},
        "at_most": None,
        "sequence_length": 256,
        "seed": 1,
        "allow_repeat": False,
    }
    assert hashlib.sha256(json.dumps(then, sort_keys=True).encode()).hexdigest() == LITERAL


#: Of the request above, made by the version that knew nothing of what begins a text.
LITERAL = "9def497268ac3ab1bf5c7ee03047150954c1331f74380d5f6de7a4f31e2ee7ce"


def test_the_tokens_of_bloom_are_those_it_always_gave(corpus: Path) -> None:
    tokenizer = DocumentTokenizer(str(BLOOM))
    assert tokenizer.facts() == ("bd5eb7517486e5b5fb2b9b2c8d0a9e8523223839d3a628d3bfe24538a2b6a251", (), None, 8192)
    drawn = drawn_here(SegmentRequest(corpus, str(BLOOM), ("en",), None, LENGTH))["en"]
    plain = [token for text in some_texts("en", 12) for token in (*tokenizer.tokenizer(text)["input_ids"], 2)]
    assert [token for one in drawn.segments for token in one.token_ids] == plain[: len(plain) // LENGTH * LENGTH]
