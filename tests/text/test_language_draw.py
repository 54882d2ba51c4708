"""What is drawn from where: uniform over all of the text, exact in number, the same whatever else is asked for."""

import gzip
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mbs_ray.errors import InputError
from mbs_ray.text.ray_data import read_items, read_texts
from mbs_ray.text.segment_draw import language_draws
from mbs_ray.text.segment_request import SegmentRequest
from mbs_ray.text.shards import Document, Source
from mbs_ray.text.token_stream import TokenStream
from mbs_ray.text.tokenization import DocumentTokenizer
from tests.support.texts import drawn_here, request, rows_of, some_texts, write_parquet

LENGTH = 32
GROUPS, GROUP_ROWS = 1000, 4


@pytest.fixture(scope="module")
def thousand(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """English in 1,000 row groups of 4 documents of 5 KB."""
    folder = tmp_path_factory.mktemp("thousand")
    random = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz "))
    texts = ["".join(random.choice(letters, 5000)) for _ in range(GROUPS * GROUP_ROWS)]
    write_parquet(folder / "en.parquet", texts, GROUP_ROWS)
    return folder


def rows_drawn(asked: SegmentRequest) -> list[int]:
    """The row each segment begins in."""
    return [int(segment.documents[0].partition("#")[2]) for segment in drawn_here(asked)["en"].segments]


def farthest_from_uniform(positions: list[float]) -> float:
    """Kolmogorov-Smirnov: the largest distance from the uniform distribution on [0, 1)."""
    ordered = np.sort(positions)
    steps = np.arange(len(ordered) + 1) / len(ordered)
    return float(max(np.abs(ordered - steps[1:]).max(), np.abs(ordered - steps[:-1]).max()))


@pytest.mark.slow
def test_positions_are_uniform_over_a_thousand_row_groups(thousand: Path, tokenizer: Path) -> None:
    rows = [row for seed in range(4) for row in rows_drawn(request(thousand, tokenizer, {"en": 87}, seed=seed))]
    of_all = farthest_from_uniform([(row + 0.5) / (GROUPS * GROUP_ROWS) for row in rows])
    assert of_all < 1.63 / np.sqrt(len(rows))  # the 1 % bound
    in_group = Counter(row % GROUP_ROWS for row in rows)
    expected = len(rows) / GROUP_ROWS
    assert sum((in_group[place] - expected) ** 2 / expected for place in range(GROUP_ROWS)) < 11.3  # 1 %, 3 degrees


@pytest.mark.slow
def test_two_seeds_hardly_share_a_row_group_and_one_seed_draws_the_same_again(thousand: Path, tokenizer: Path) -> None:
    first, second = (rows_drawn(request(thousand, tokenizer, {"en": 87}, seed=seed)) for seed in (0, 1))
    assert len({row // GROUP_ROWS for row in first}) >= 75  # 83.4 are expected of 87 drawn from 1,000
    assert len(set(first) & set(second)) <= 8  # 87 * 87 / 4000 = 1.9 are expected
    assert rows_drawn(request(thousand, tokenizer, {"en": 87}, seed=0)) == first


def test_of_parquet_the_row_groups_of_the_spots_are_read_and_nothing_else(thousand: Path, tokenizer: Path) -> None:
    """Counted by the kernel, over the reading of all spots of the request, footer and all."""
    asked = request(thousand, tokenizer, {"en": 87})
    (draw,) = language_draws(asked).values()
    asks = draw.asks()
    table = pa.Table.from_pylist(read_items(asks))
    before = bytes_read()
    texts = list(read_texts(table, shards=asked.opened.shards, seed=0))
    read = bytes_read() - before
    metadata = pq.read_metadata(thousand / "en.parquet")
    used = sum(metadata.row_group(ask.number).column(1).total_compressed_size for ask in asks)
    assert sum(len(ask.spots or ()) for ask in asks) == 87 + 87 // 4 + 1 >= len(texts)
    assert used < read - metadata.serialized_size <= 1.5 * used
    facts = drawn_here(asked)["en"].facts
    assert facts["units_read"] == 109 and 70 < facts["units_used"] <= 87


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "jsonl.zst"])
def test_of_text_what_stands_around_the_spots_is_read_and_of_compressed_text_their_members(
    tmp_path: Path, tokenizer: Path, suffix: str
) -> None:
    """Twelve members of 2 MiB, of which four segments need at most six."""
    random = np.random.default_rng(0)
    compress = {"jsonl": bytes, "jsonl.gz": lambda content: gzip.compress(content, 1), "jsonl.zst": zstandard.compress}
    members = []
    for _ in range(12):
        texts = (random.bytes(1000).hex() for _ in range(1000))
        members.append(compress[suffix]("".join(f'{{"text": "{text}"}}\n' for text in texts).encode()))
    (tmp_path / f"en.{suffix}").write_bytes(b"".join(members))
    asked = request(tmp_path, tokenizer, {"en": 4})
    (draw,) = language_draws(asked).values()
    asks = draw.asks()
    before = bytes_read()
    texts = list(read_texts(pa.Table.from_pylist(read_items(asks)), shards=asked.opened.shards, seed=0))
    read = bytes_read() - before
    assert sum(len(ask.spots or ()) for ask in asks) == 6 >= len(texts)
    if suffix == "jsonl":
        assert len(asks) == 1 and read < 6 * 2**16
    else:
        assert 1 < len(asks) <= 6 and read < len(asks) * (max(map(len, members)) + 2**17)


def bytes_read() -> int:
    return int(Path("/proc/self/io").read_text().split()[1])


def test_a_language_draws_the_same_whatever_other_languages_are_asked_for(tmp_path: Path, tokenizer: Path) -> None:
    for language in ("en", "hi", "sw"):
        write_parquet(tmp_path / f"{language}.parquet", some_texts(language, 60), 10)
    alone = drawn_here(request(tmp_path, tokenizer, {"sw": 9}))
    among = drawn_here(request(tmp_path, tokenizer, {"sw": 9, "hi": 3, "en": 20}))
    assert list(among) == ["en", "hi", "sw"]
    assert rows_of(alone["sw"]) == rows_of(among["sw"])


@pytest.mark.parametrize("asked", [5, 30])
def test_a_segment_is_a_run_of_its_documents_tokens(tmp_path: Path, tokenizer: Path, asked: int) -> None:
    """Every segment is found again in the document it begins in, or runs over the end of it into the next."""
    texts = some_texts("hi", 60, words=100)
    write_parquet(tmp_path / "hi.parquet", texts, 10)
    streams = DocumentTokenizer(str(tokenizer)).tokenize(
        [Document(f"hi.parquet#{row}", t, 0) for row, t in enumerate(texts)]
    )
    of_document = {stream.documents[0]: stream for stream in streams}
    drawn = drawn_here(request(tmp_path, tokenizer, {"hi": asked}))["hi"]
    for segment in drawn.segments:
        for index, label in enumerate(segment.documents):
            (own,) = np.nonzero(segment.document_index == index)
            ids, sizes = segment.token_ids[own], segment.bytes[own]
            whole = of_document[label]
            starts = [
                start
                for start in range(len(whole) - len(ids))
                if (whole.token_ids[start : start + len(ids)] == ids).all()
                and (whole.bytes[start : start + len(ids)] == sizes).all()
            ]
            assert starts and (np.diff(own) == 1).all()
            if index:
                assert 0 in starts
        assert set(segment.token_ids[segment.document_index == -1].tolist()) <= {1}


def tokens_of(texts: list[str], tokenizer: Path) -> int:
    return sum(
        len(stream) for stream in DocumentTokenizer(str(tokenizer)).tokenize([Document("", text, 0) for text in texts])
    )


@pytest.mark.parametrize("group", [1, 2, 7, 60])
def test_a_language_gives_every_segment_its_tokens_fill_and_then_says_how_many(
    tmp_path: Path, tokenizer: Path, group: int
) -> None:
    texts = some_texts("sw", 60, words=12)
    write_parquet(tmp_path / "sw.parquet", texts, group)
    possible = tokens_of(texts, tokenizer) // LENGTH
    drawn = drawn_here(request(tmp_path, tokenizer, {"sw": possible}))["sw"]
    assert len(drawn.segments) == possible
    assert drawn.facts["repeated_segments"] == 0
    message = f"'sw': the corpus gives {possible} segments of 32 tokens, {possible + 1} were asked for.*allow_repeat"
    with pytest.raises(InputError, match=message):
        drawn_here(request(tmp_path, tokenizer, {"sw": possible + 1}))


def test_every_token_is_drawn_once_when_all_are_needed(tmp_path: Path, tokenizer: Path) -> None:
    texts = some_texts("en", 40)
    write_parquet(tmp_path / "en.parquet", texts, 6)
    possible = tokens_of(texts, tokenizer) // LENGTH
    drawn = drawn_here(request(tmp_path, tokenizer, {"en": possible}))["en"]
    counted = Counter(token for row in rows_of(drawn) for token in row)
    streams = DocumentTokenizer(str(tokenizer)).tokenize([Document("", text, 0) for text in texts])
    everything = Counter(token for stream in streams for token in stream.token_ids.tolist())
    assert not counted - everything
    assert sum((everything - counted).values()) < LENGTH


def test_repeats_are_windows_of_the_text_logged_and_counted(
    tmp_path: Path, tokenizer: Path, caplog: pytest.LogCaptureFixture
) -> None:
    texts = some_texts("sw", 5)
    write_parquet(tmp_path / "sw.parquet", texts, 5)
    possible = tokens_of(texts, tokenizer) // LENGTH
    drawn = drawn_here(request(tmp_path, tokenizer, {"sw": possible + 7}, allow_repeat=True))["sw"]
    assert len(drawn.segments) == possible + 7
    assert drawn.facts["repeated_segments"] == 7
    assert f"gives {possible} of {possible + 7} segments, 7 overlapping windows" in caplog.text
    assert len(set(rows_of(drawn))) == possible + 7
    enough = drawn_here(request(tmp_path, tokenizer, {"sw": possible}, allow_repeat=True))["sw"]
    assert rows_of(drawn)[:possible] == rows_of(enough)
    assert enough.facts["repeated_segments"] == 0


def test_text_of_less_than_one_segment_cannot_even_be_repeated(tmp_path: Path, tokenizer: Path) -> None:
    write_parquet(tmp_path / "sw.parquet", ["mto"], 5)
    with pytest.raises(InputError, match="'sw': the corpus gives 0 segments"):
        drawn_here(request(tmp_path, tokenizer, {"sw": 2}, allow_repeat=True))


def test_units_of_very_different_size_give_what_the_others_lack(tmp_path: Path, tokenizer: Path) -> None:
    texts = some_texts("en", 12, words=6)
    texts[4] = some_texts("en", 1, words=3000)[0]
    write_parquet(tmp_path / "en.parquet", texts, 1)
    drawn = drawn_here(request(tmp_path, tokenizer, {"en": 50}))["en"]
    assert len(set(rows_of(drawn))) == 50
    assert sum("en.parquet#4" in segment.documents for segment in drawn.segments) >= 45


def test_a_unit_of_few_tokens_per_byte_is_read_further(tmp_path: Path, tokenizer: Path) -> None:
    """Over 32 bytes a token: the first reading of a unit falls short, the second does not."""
    long = "m" * 200
    words = Tokenizer(models.WordLevel({long: 0, "?": 1}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?").save_pretrained(tmp_path / "words")
    write_parquet(tmp_path / "en.parquet", [" ".join([long] * 5)] * 100, 100)
    drawn = drawn_here(request(tmp_path, tmp_path / "words", {"en": 2}))["en"]
    assert len(drawn.segments) == 2
    assert drawn.facts["units_read"] == 9  # three spots, each read three times


def test_all_the_text_in_its_order_is_taken_but_for_one_tail(tmp_path: Path, tokenizer: Path) -> None:
    for language in ("en", "hi", "zh-Hans"):
        write_parquet(tmp_path / f"{language}.parquet", some_texts(language, 33), 8)
    asked = SegmentRequest(str(tmp_path), str(tokenizer), ("en", "hi", "zh-Hans"), None, LENGTH)
    for language, drawn in drawn_here(asked).items():
        texts = some_texts(language, 33)
        streams = DocumentTokenizer(str(tokenizer)).tokenize([Document("", text, 0) for text in texts])
        everything = [token for stream in streams for token in stream.token_ids.tolist()]
        covered = [token for row in rows_of(drawn) for token in row]
        assert covered == everything[: len(covered)]
        assert drawn.facts["dropped_tokens"] == len(everything) - len(covered) < LENGTH
        of_text = sum(len(text.encode()) for text in texts)
        of_segments = sum(int(segment.bytes.sum()) for segment in drawn.segments)
        assert of_segments == of_text - drawn.facts["dropped_bytes"]


def test_at_most_so_many_are_drawn_over_the_whole_text_or_all_there_are(tmp_path: Path, tokenizer: Path) -> None:
    texts = some_texts("en", 100)
    write_parquet(tmp_path / "en.parquet", texts, 5)
    possible = tokens_of(texts, tokenizer) // LENGTH
    few = SegmentRequest(str(tmp_path), str(tokenizer), ("en",), None, LENGTH, at_most=20)
    assert rows_of(drawn_here(few)["en"]) == rows_of(drawn_here(request(tmp_path, tokenizer, {"en": 20}))["en"])
    many = SegmentRequest(str(tmp_path), str(tokenizer), ("en",), None, LENGTH, at_most=10_000)
    assert len(drawn_here(many)["en"].segments) == possible


def test_a_language_without_one_full_segment_is_no_evaluation(tmp_path: Path, tokenizer: Path) -> None:
    write_parquet(tmp_path / "sw.parquet", ["mto"], 5)
    for at_most in (None, 5):
        with pytest.raises(InputError, match="'sw'"):
            drawn_here(SegmentRequest(str(tmp_path), str(tokenizer), ("sw",), None, LENGTH, at_most=at_most))


def test_a_segments_documents_are_its_own_in_order_of_appearance() -> None:
    ids = np.arange(8, dtype=np.int32)
    index = np.array([2, 2, -1, 3, -1, 0, 0, -1], np.int32)
    stream = TokenStream(ids, index, ids, tuple(Source(label, label.encode(), label) for label in "abcd"))
    compact = stream.compact()
    assert compact.documents == ("c", "d", "a")
    assert compact.document_index.tolist() == [0, 0, -1, 1, -1, 2, 2, -1]
    assert stream.cut(2, 5).compact().documents == ("d",)
