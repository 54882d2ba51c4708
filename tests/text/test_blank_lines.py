"""Documents joined by blank lines: the tokens of the joined text, each counted for what it has of a document."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mbs_ray.evaluation.token_scores import write_token_scores
from mbs_ray.text.segment_draw import draw_segments
from mbs_ray.text.segment_request import SegmentRequest
from mbs_ray.text.shards import Document
from mbs_ray.text.token_stream import joined
from mbs_ray.text.tokenization import DocumentTokenizer
from tests.support.examples import examples
from tests.support.texts import drawn_here, rows_of, some_texts, write_jsonl, write_parquet

TEXTS = st.lists(st.text(alphabet="thewas \n.1éन河😀", max_size=12), min_size=1, max_size=6)


def documents(texts: list[str]) -> list[Document]:
    return [Document(f"doc#{row}", text, len(text.encode())) for row, text in enumerate(texts)]


@pytest.fixture(scope="module", params=["tokenizer", "merging_tokenizer"])
def blank(request: pytest.FixtureRequest) -> DocumentTokenizer:
    return DocumentTokenizer(str(request.getfixturevalue(request.param)), "blank_line")


def reference(tokenizer: DocumentTokenizer, texts: list[str]) -> list[tuple[int, int, int]]:
    """(token id, document or -1, bytes) of each token of the joined text, character by character."""
    text = "".join(one + "\n\n" for one in texts if one)
    owners = [row for row, one in enumerate(texts) if one for row in (*[row] * len(one), -1, -1)]
    encoded = tokenizer.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    rows, reached = [], 0
    for token, (_, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
        new = range(reached, max(end, reached))
        touched = [owners[place] for place in new or [max(reached - 1, 0)] if owners[place] >= 0]
        size = sum(len(text[place].encode()) for place in new if owners[place] >= 0)
        rows.append((token, touched[0] if touched else -1, size))
        reached = max(end, reached)
    return rows


@examples(300)
@given(texts=TEXTS)
def test_tokens_documents_and_bytes_are_those_of_the_joined_text(blank: DocumentTokenizer, texts: list[str]) -> None:
    streams = blank.tokenize(documents(texts))
    assert [stream.documents for stream in streams] == [(f"doc#{row}",) for row in range(len(texts))]
    stream = joined(streams)
    found = zip(stream.token_ids.tolist(), stream.document_index.tolist(), stream.bytes.tolist(), strict=True)
    assert list(found) == reference(blank, texts)
    assert int(stream.bytes.sum()) == sum(len(text.encode()) for text in texts)


def test_a_token_that_reaches_over_a_blank_line_is_scored_for_its_text_alone(merging_tokenizer: Path) -> None:
    own = DocumentTokenizer(str(merging_tokenizer), "blank_line")
    texts = [f"the {text}.".replace("\n", " ") for text in some_texts("en", 40)]
    stream = joined(own.tokenize(documents(texts)))
    tokens = own.tokenizer.convert_ids_to_tokens(stream.token_ids.tolist())
    over = [place for place, token in enumerate(tokens) if "Ċ" in token and token.strip("Ċ")]
    assert {tokens[place] for place in over} >= {".Ċ", "Ċth"}
    for place in over:
        assert stream.document_index[place] >= 0
        assert stream.bytes[place] == len(tokens[place].strip("Ċ"))


def test_nothing_but_empty_documents_gives_no_token(blank: DocumentTokenizer) -> None:
    assert [len(stream) for stream in blank.tokenize(documents(["", ""]))] == [0, 0]


def test_whole_text_is_cut_as_the_papers_scripts_cut_it_and_blank_lines_are_not_scored(
    tmp_path: Path, tokenizer: Path
) -> None:
    texts = {language: some_texts(language, 30) for language in ("en", "hi")}
    write_parquet(tmp_path / "en.parquet", texts["en"], 1000)
    write_jsonl(tmp_path / "hi.jsonl", texts["hi"])
    asked = SegmentRequest(tmp_path, str(tokenizer), ("en", "hi"), None, 32, join="blank_line")
    drawn = draw_segments(asked, tmp_path / "segments")
    rows = drawn.read()
    plain = DocumentTokenizer(str(tokenizer)).tokenizer
    expected = []
    for own in texts.values():
        token_ids = plain("\n\n".join(own))["input_ids"]
        expected += [token_ids[start : start + 32] for start in range(0, len(token_ids) - 31, 32)]
    assert rows.token_ids.tolist() == expected
    for language, own in texts.items():
        counted = rows.bytes[[one == language for one in rows.language]].sum()
        assert counted + drawn.facts[language]["dropped_bytes"] == sum(len(text.encode()) for text in own)
    assert set(plain.convert_ids_to_tokens(rows.token_ids[rows.document_index < 0].tolist())) == {"Ċ"}
    nll = torch.rand(len(rows), 31)
    write_token_scores(tmp_path / "scores.parquet", drawn, nll)
    scored = torch.from_numpy(rows.document_index[:, 1:] >= 0)
    table = pq.read_table(tmp_path / "scores.parquet")
    assert table["nll"].to_pylist() == nll[scored].tolist()
    assert table["bytes"].to_pylist() == rows.bytes[:, 1:][scored.numpy()].tolist()


def test_drawn_segments_are_pieces_of_the_documents_with_blank_lines_between(tmp_path: Path, tokenizer: Path) -> None:
    texts = some_texts("en", 60)
    write_parquet(tmp_path / "en.parquet", texts, 10)
    asked = SegmentRequest(tmp_path, str(tokenizer), ("en",), None, 64, at_most=9, join="blank_line")
    drawn = drawn_here(asked)["en"]
    assert len(drawn.segments) == 9 and rows_of(drawn) == rows_of(drawn_here(asked)["en"])
    end = DocumentTokenizer(str(tokenizer)).tokenizer
    for segment in drawn.segments:
        text = end.decode(segment.token_ids.tolist())
        assert end.eos_token not in text
        assert all(any(piece in one for one in texts) for piece in text.strip("\n").split("\n\n"))
