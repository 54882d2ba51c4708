"""Corpora of conversations: read from every format, drawn packed or one in each segment, refused where malformed."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from ray.cluster_utils import Cluster

from mbs_ray.errors import InputError
from mbs_ray.evaluation.token_scores import write_token_scores
from mbs_ray.text.conversations import Message, messages_in
from mbs_ray.text.corpus import open_corpus, parse_location
from mbs_ray.text.ray_data import gather
from mbs_ray.text.segment_draw import check_request, fill, finished, language_draws, recipe_of
from mbs_ray.text.segment_file import write_segments
from mbs_ray.text.segment_request import SegmentRequest, TextSources
from mbs_ray.text.shards import Wanted
from mbs_ray.text.tokenization import DocumentTokenizer
from tests.support.chats import CHATML, HEADERS, as_sharegpt, some_chats, with_template, write_chats
from tests.support.texts import drawn_here, request, rows_of, some_texts, write_parquet

CHATS = some_chats("sw", 30)
LENGTH = 32
#: Tokens that about half of the conversations have.
LONG = 120
FORMATS = ("sw.parquet", "sw.jsonl", "sw.jsonl.gz", "sw.jsonl.zst")


@pytest.fixture(scope="module")
def chatml(tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_template(tokenizer, tmp_path_factory.mktemp("chatml"), CHATML)


@pytest.fixture(scope="module")
def headers(beginning_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_template(beginning_tokenizer, tmp_path_factory.mktemp("headers"), HEADERS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chats")
    write_chats(folder / "sw.jsonl", CHATS)
    return folder


def location(folder: Path, chat: str = "packed", **options: str) -> dict[str, str]:
    return {"folder": str(folder), "chat": chat, **options}


def rendered(tokenizer: Path) -> list[list[int]]:
    """Tokens of each conversation, as transformers gives them for a template that names no day."""
    own = DocumentTokenizer(str(tokenizer), chat="packed").tokenizer
    return [own.apply_chat_template(one, return_dict=False) for one in CHATS]


@pytest.mark.parametrize("written", FORMATS)
@pytest.mark.parametrize("sharegpt", [False, True])
def test_every_format_and_both_ways_give_the_same_conversations(tmp_path: Path, written: str, sharegpt: bool) -> None:
    column = "conversations" if sharegpt else "messages"
    write_chats(tmp_path / written, [*map(as_sharegpt, CHATS)] if sharegpt else CHATS, column)
    corpus = open_corpus(location(tmp_path, text_column=column), ["sw"])
    (shard,) = corpus.shards["sw"]
    read = [document for unit in shard.read(range(shard.unit_count)) for document in unit]
    expected = [[Message(**message) for message in chat] for chat in CHATS]
    assert [messages_in(document.text) for document in read] == expected
    assert [one.size for one in read] == [sum(len(one.content.encode()) for one in chat) for chat in expected]


@pytest.mark.parametrize("builder", ["parquet", "json"])
def test_a_data_set_gives_them_too(tmp_path: Path, chatml: Path, builder: str) -> None:
    name = {"parquet": "sw.parquet", "json": "sw.jsonl"}[builder]
    write_chats(tmp_path / name, CHATS)
    data_set = {"dataset": builder, "data_files": str(tmp_path / name), "chat": "packed"}
    streamed, direct = (
        drawn_here(SegmentRequest(one, str(chatml), ("sw",), None, LENGTH))["sw"]
        for one in (data_set, location(tmp_path))
    )
    assert rows_of(streamed) == rows_of(direct) and len(rows_of(direct)) > 10


def test_packed_conversations_are_cut_like_text(folder: Path, chatml: Path) -> None:
    drawn = drawn_here(SegmentRequest(location(folder), str(chatml), ("sw",), None, LENGTH))["sw"]
    stream = [token for ids in rendered(chatml) for token in ids]
    assert [token for row in rows_of(drawn) for token in row] == stream[: len(stream) // LENGTH * LENGTH]
    contents = sum(len(message["content"].encode()) for chat in CHATS for message in chat)
    assert drawn.facts["bytes"] + drawn.facts["dropped_bytes"] == contents


def test_packed_segments_begin_as_the_tokenizer_begins_a_text(folder: Path, headers: Path) -> None:
    for segment in drawn_here(request(location(folder), headers, {"sw": 9}, sequence_length=LENGTH))["sw"].segments:
        assert len(segment) == LENGTH and segment.token_ids[0] == 0 and 0 not in segment.token_ids[1:]


def test_many_conversations_are_drawn_at_places_of_the_text(tmp_path: Path, chatml: Path) -> None:
    write_chats(tmp_path / "a" / "sw.parquet", some_chats("sw", 3000), group=100)
    asked = request(location(tmp_path / "a"), chatml, {"sw": 12})
    drawn = drawn_here(asked)["sw"]
    assert len(drawn.segments) == 12 and drawn.facts["units_read"] < drawn.facts["units"]
    write_chats(tmp_path / "b" / "sw.jsonl", some_chats("sw", 3000))
    assert len(drawn_here(request(location(tmp_path / "b"), chatml, {"sw": 12}))["sw"].segments) == 12


@pytest.mark.parametrize("options", [{}, {"at_most": 5}, {"allocation": {"sw": 5}}], ids=str)
def test_each_segment_is_the_beginning_of_a_conversation(
    folder: Path, chatml: Path, headers: Path, options: dict[str, Any]
) -> None:
    whole = [ids[:LONG] for ids in rendered(chatml) if len(ids) >= LONG]
    assert 5 < len(whole) < len(CHATS)
    asked = SegmentRequest(
        location(folder, "one_per_segment"),
        **{"tokenizer": str(chatml), "languages": ("sw",), "allocation": None, "sequence_length": LONG, **options},  # type: ignore[arg-type]
    )
    drawn = drawn_here(asked)["sw"]
    rows = [list(row) for row in rows_of(drawn)]
    assert len(rows) == (5 if options else len(whole))
    assert rows == [row for row in whole if row in rows] and len({*map(tuple, rows)}) == len(rows)
    assert drawn.facts["short_conversations"] == len(CHATS) - len(whole)
    if not options:
        contents = sum(len(message["content"].encode()) for chat in CHATS for message in chat)
        assert drawn.facts["bytes"] + drawn.facts["dropped_bytes"] == contents
        assert drawn.facts["dropped_tokens"] + len(rows) * LONG == sum(map(len, rendered(chatml)))
    # It begins as its template begins it, once.
    for segment in drawn_here(request(location(folder, "one_per_segment"), headers, {"sw": 4}))["sw"].segments:
        assert segment.token_ids.tolist().count(0) == 1 and segment.token_ids[0] == 0


def test_every_conversation_is_as_likely_as_any_other(folder: Path, chatml: Path) -> None:
    counts: dict[str, int] = {}
    for seed in range(200):
        asked = request(location(folder, "one_per_segment"), chatml, {"sw": 6}, seed=seed, sequence_length=64)
        for segment in drawn_here(asked)["sw"].segments:
            for label in segment.documents:
                counts[label] = counts.get(label, 0) + 1
    # All are long enough: each is drawn 40 times on average, give or take 6.
    assert len(counts) == len(CHATS) and min(counts.values()) > 18 and max(counts.values()) < 62


def test_too_few_long_conversations_are_told_or_repeated(folder: Path, chatml: Path) -> None:
    asked = request(location(folder, "one_per_segment"), chatml, {"sw": 40}, sequence_length=LONG)
    with pytest.raises(
        InputError, match=r"language 'sw': \d+ conversations have 120 tokens or more, 40 were asked for"
    ):
        drawn_here(asked)
    repeating = request(
        location(folder, "one_per_segment"), chatml, {"sw": 40}, sequence_length=LONG, allow_repeat=True
    )
    drawn = drawn_here(repeating)["sw"]
    assert len(drawn.segments) == 40 and len({*rows_of(drawn)}) == 40 - drawn.facts["repeated_segments"]
    with pytest.raises(
        InputError, match=r"language 'sw': 0 conversations have 4096 tokens .* 30 shorter ones are left"
    ):
        drawn_here(SegmentRequest(location(folder, "one_per_segment"), str(chatml), ("sw",), None, 4096))


@pytest.mark.parametrize("chat", ["packed", "one_per_segment"])
def test_ray_data_draws_the_same(folder: Path, chatml: Path, chat: str, ray_cluster: Cluster) -> None:
    asked = request(location(folder, chat), chatml, {"sw": 6})
    draws = language_draws(asked)
    fill(draws, partial(gather, asked.opened.shards, recipe_of(asked), 1), None)
    assert rows_of(finished(asked, draws)["sw"]) == rows_of(drawn_here(asked)["sw"])


def test_contents_are_scored_and_markup_is_context(folder: Path, chatml: Path, tmp_path: Path) -> None:
    drawn = drawn_here(SegmentRequest(location(folder), str(chatml), ("sw",), None, LENGTH))
    written = write_segments(tmp_path / "x.parquet", "f", {"sequence_length": LENGTH}, drawn)
    write_token_scores(tmp_path / "scores.parquet", written, torch.ones(len(written), LENGTH - 1))
    table = pq.read_table(tmp_path / "scores.parquet")
    segments = drawn["sw"].segments
    assert table.num_rows == sum(int((one.document_index[1:] >= 0).sum()) for one in segments)
    assert sum(table["bytes"].to_pylist()) == sum(int(one.bytes[1:].sum()) for one in segments)


def test_bytes_per_token_count_contents_over_all_tokens(folder: Path, chatml: Path) -> None:
    (found,) = TextSources().bytes_per_token(location(folder), str(chatml), ["sw"]).values()
    contents = sum(len(message["content"].encode()) for chat in CHATS for message in chat)
    assert found == pytest.approx(contents / sum(map(len, rendered(chatml))))


MALFORMED = [
    ({"role": "user"}, "has no text in field 'messages[1].content'"),
    ({"content": "mto"}, "has no text in field 'messages[1].role'"),
    ({"role": "user", "content": 3}, "has no text in field 'messages[1].content'"),
    ({"from": "narrator", "value": "mto"}, "has the unknown speaker 'narrator' in field 'messages[1].from'; there are"),
    ({"role": "user", "content": [{"type": "image", "url": "x"}]}, "has a part of type 'image' in field"),
    ({"role": "user", "content": [{"type": "text"}]}, "has no text in field 'messages[1].content[0].text'"),
    ({"role": "assistant", "content": "", "tool_calls": [{"name": "x"}]}, "calls a tool in field"),
    ("mto", "has no message in field 'messages[1]'"),
    ({"role": "user", "content": "\ud800"}, "holds half of a surrogate pair"),
]


@pytest.mark.parametrize(("message", "reason"), MALFORMED, ids=[reason for _, reason in MALFORMED])
def test_a_malformed_message_is_named_by_file_row_and_field(tmp_path: Path, message: Any, reason: str) -> None:
    good = {"role": "user", "content": "mto"}
    lines = [[good, good], [good, message]]
    (tmp_path / "sw.jsonl").write_text("".join(json.dumps({"messages": line}) + "\n" for line in lines))
    (shard,) = open_corpus(location(tmp_path), ["sw"]).shards["sw"]
    with pytest.raises(InputError) as caught:
        [[*unit] for unit in shard.read([0])]
    assert str(caught.value).startswith(f"{tmp_path / 'sw.jsonl'}: line 2 {reason}")


def test_a_malformed_row_of_parquet_is_named_too(tmp_path: Path) -> None:
    good = {"role": "user", "content": "mto"}
    write_chats(tmp_path / "sw.parquet", [[good], None, [], [good, {"role": "user", "content": None}]], group=2)
    (shard,) = open_corpus(location(tmp_path), ["sw"]).shards["sw"]
    with pytest.raises(InputError, match=r"sw.parquet: row 3 has no text in field 'messages\[1\].content'"):
        [[*unit] for unit in shard.read([0, 1])]
    write_parquet(tmp_path / "en.parquet", some_texts("en", 3), 3, "messages")
    with pytest.raises(InputError, match="column 'messages' holds string, not messages: lists of"):
        open_corpus(location(tmp_path), ["en"])


def test_parts_of_text_are_joined(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "mto "}, {"type": "text", "text": "umejaa"}]
    for name in ("sw.parquet", "sw.jsonl"):
        write_chats(tmp_path / name / name, [[{"role": "user", "content": parts}]] * 3)
        (shard,) = open_corpus(location(tmp_path / name), ["sw"]).shards["sw"]
        read = [messages_in(one.text) for unit in shard.read([0]) for one in unit]
        assert read == [[Message("user", "mto umejaa")]] * 3


def test_what_is_no_chat_corpus_is_said_at_once(tmp_path: Path, folder: Path, tokenizer: Path, chatml: Path) -> None:
    with pytest.raises(InputError, match="corpus: chat 'alone': there are packed and one_per_segment"):
        parse_location(location(folder, "alone"))
    (tmp_path / "sw.txt").write_text("mto umejaa")
    with pytest.raises(InputError, match=r"sw.txt: plain text holds no messages"):
        open_corpus(location(tmp_path), ["sw"])
    with pytest.raises(InputError, match="join blank_line: a chat template says what stands between conversations"):
        request(location(folder), chatml, {"sw": 3}, join="blank_line")
    # Before the corpus is looked at, which is not there.
    with pytest.raises(InputError, match="has no chat template, which a chat corpus goes through"):
        check_request(request(location(tmp_path / "nowhere"), tokenizer, {"sw": 3}))


def test_template_and_kind_change_the_fingerprint_and_text_knows_of_neither(
    folder: Path, tokenizer: Path, chatml: Path, tmp_path: Path
) -> None:
    packed = request(location(folder), chatml, {"sw": 3}).fingerprint
    assert packed == request(location(folder), chatml, {"sw": 3}).fingerprint
    other = with_template(tokenizer, tmp_path / "other", CHATML.replace("briefly", "at length"))
    changed = {
        request(location(folder, "one_per_segment"), chatml, {"sw": 3}).fingerprint,
        request(location(folder), other, {"sw": 3}).fingerprint,
    }
    assert len({packed, *changed}) == 3
    assert recipe_of(request(location(folder), chatml, {"sw": 3})) != recipe_of(
        request(location(folder), other, {"sw": 3})
    )
    write_parquet(tmp_path / "plain" / "sw.parquet", some_texts("sw", 20), 5)
    plain = [request(tmp_path / "plain", one, {"sw": 3}).fingerprint for one in (chatml, other)]
    assert plain[0] == plain[1]


def test_rows_of_parquet_with_null_lists_keep_their_bytes(tmp_path: Path) -> None:
    kind = pa.list_(pa.struct({"role": pa.string(), "content": pa.string()}))
    chats = [CHATS[0], None, [], CHATS[1], CHATS[2]]
    pq.write_table(pa.table({"messages": pa.array(chats, kind)}), tmp_path / "sw.parquet")
    corpus = open_corpus(location(tmp_path), ["sw"])
    (shard,) = corpus.shards["sw"]
    found = [*shard.addressed(0, Wanted())]
    masses = np.array([one.end - one.begin for one in found])
    sizes = np.array([one.document.size + 1 for one in found])
    assert len(found) == 3 and masses == pytest.approx(sizes * masses.sum() / sizes.sum())


def test_segments_that_hold_nothing_but_markup_are_refused(folder: Path, chatml: Path) -> None:
    """Where the template has a longer beginning of its own than the segment has tokens."""
    short = request(location(folder, "one_per_segment"), chatml, {"sw": 2}, sequence_length=3)
    with pytest.raises(InputError, match=r"'sw': its 2 segments hold nothing but what the chat template writes"):
        drawn_here(short)
