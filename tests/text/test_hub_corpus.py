"""Datasets streamed through `datasets`, tried on its builders for local files, offline."""

import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ray.cluster_utils import Cluster

from mbs_ray.errors import InputError
from mbs_ray.languages.facts import PAPER_LANGUAGES
from mbs_ray.text.corpus import open_corpus, parse_location
from mbs_ray.text.hub_corpus import KNOWN, HubCorpus
from mbs_ray.text.segment_draw import draw_segments
from mbs_ray.text.shards import Wanted
from tests.support.texts import drawn_here, request, rows_of, some_texts, write_jsonl, write_parquet


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("datasets")
    for language, name in (("en", "english"), ("sw", "swahili")):
        write_parquet(folder / f"{language}.parquet", some_texts(language, 40), 5)
        write_parquet(folder / "named" / name / "train.parquet", some_texts(language, 40), 5)
        write_jsonl(folder / f"{language}.jsonl", some_texts(language, 40))
    configs = "".join(
        f"  - config_name: {name}\n    data_files: {name}/train.parquet\n" for name in ("english", "swahili")
    )
    (folder / "named" / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    return folder


def parquet(folder: Path, **options: Any) -> dict[str, Any]:
    return {"dataset": "parquet", "data_files": str(folder / "{language}.parquet"), **options}


def test_a_unit_of_parquet_is_a_row_group(folder: Path) -> None:
    (shard,) = open_corpus(parquet(folder), ["en"]).shards["en"]
    assert shard.unit_count == 8
    units = [[document.text for document in documents] for documents in shard.read(range(8))]
    texts = some_texts("en", 40)
    assert units == [texts[start : start + 5] for start in range(0, 40, 5)]


@pytest.mark.parametrize("builder", ["parquet", "json"])
def test_a_stream_gives_the_segments_of_the_same_folder(folder: Path, tokenizer: Path, builder: str) -> None:
    suffix = {"parquet": "parquet", "json": "jsonl"}[builder]
    only = folder / f"only-{suffix}"
    only.mkdir()
    for language in ("en", "sw"):
        (only / f"{language}.{suffix}").write_bytes((folder / f"{language}.{suffix}").read_bytes())
    location = {"dataset": builder, "data_files": str(folder / f"{{language}}.{suffix}")}
    # Of JSON lines a stream does not tell the bytes between the texts: places are others, unless all text is taken.
    allocation = {"parquet": {"en": 9, "sw": 6}, "json": {"en": 40, "sw": 40}}[builder]
    streamed = drawn_here(request(location, tokenizer, allocation))
    direct = drawn_here(request(only, tokenizer, allocation))
    assert {language: rows_of(one) for language, one in streamed.items()} == {
        language: rows_of(one) for language, one in direct.items()
    }


@pytest.mark.slow
def test_a_stream_is_drawn_through_ray(ray_cluster: Cluster, folder: Path, tokenizer: Path, tmp_path: Path) -> None:
    asked = request(parquet(folder), tokenizer, {"en": 9, "sw": 6})
    segments = draw_segments(asked, tmp_path, here_bytes=0).read()
    here = drawn_here(asked)
    assert [tuple(row) for row in segments.token_ids.tolist()] == rows_of(here["en"]) + rows_of(here["sw"])
    assert segments.documents[0][0].startswith("en.parquet:train[")


def test_configurations_are_named_per_language_or_by_a_pattern(folder: Path) -> None:
    mapped = {"dataset": str(folder / "named"), "config": {"en": "english", "sw": "swahili"}}
    (shard,) = open_corpus(mapped, ["sw"]).shards["sw"]
    (documents, *_) = (list(documents) for documents in shard.read([0]))
    assert [document.text for document in documents] == some_texts("sw", 40)[:5]
    with pytest.raises(InputError, match=r"'yo': no config of dataset .* only for en, sw"):
        open_corpus(mapped, ["yo"])
    with pytest.raises(InputError, match=r"'en': dataset .*named/en: "):
        open_corpus({"dataset": str(folder / "named"), "config": "{language}"}, ["en"])


def test_one_text_is_not_taken_for_two_languages(folder: Path) -> None:
    location = {"dataset": "parquet", "data_files": str(folder / "en.parquet")}
    assert len(open_corpus(location, ["en"]).units("en")) == 8
    with pytest.raises(InputError, match="'en' and 'sw' read the same text"):
        open_corpus(location, ["en", "sw"])


def test_the_identity_of_local_files_is_their_content(folder: Path, tmp_path: Path) -> None:
    write_parquet(tmp_path / "en.parquet", some_texts("en", 40), 5)
    assert open_corpus(parquet(tmp_path), ["en"]).identity == open_corpus(parquet(folder), ["en"]).identity
    write_parquet(tmp_path / "en.parquet", some_texts("en", 40)[::-1], 5)
    assert open_corpus(parquet(tmp_path), ["en"]).identity != open_corpus(parquet(folder), ["en"]).identity
    own = Path(shutil.copytree(folder / "named", tmp_path / "named"))
    named = {"dataset": str(own), "config": {"en": "english"}}
    before = open_corpus(named, ["en"]).identity
    write_parquet(own / "english" / "train.parquet", some_texts("en", 41), 5)
    assert open_corpus(named, ["en"]).identity != before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data_files": "/nowhere/{language}.parquet"}, "'en': dataset parquet: .*nowhere"),
        ({"split": "validation"}, "'en': dataset parquet: .*validation"),
        ({"text_column": "content"}, "no column 'content'; its columns: id, text"),
    ],
)
def test_what_a_stream_lacks_is_one_line(folder: Path, options: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        open_corpus(parquet(folder, **options), ["en"])
    assert "\n" not in str(error.value)


def test_an_empty_stream_is_named(tmp_path: Path) -> None:
    (tmp_path / "en.txt").touch()
    with pytest.raises(InputError, match="'en': dataset text: split 'train' is empty"):
        open_corpus({"dataset": "text", "data_files": str(tmp_path / "{language}.txt")}, ["en"])


def test_a_damaged_row_group_is_named(tmp_path: Path) -> None:
    write_parquet(tmp_path / "en.parquet", some_texts("en", 40), 5)
    content = bytearray((tmp_path / "en.parquet").read_bytes())
    middle = len(content) // 2
    content[middle : middle + 400] = bytes(400)
    (tmp_path / "en.parquet").write_bytes(content)
    for location in (parquet(tmp_path), str(tmp_path)):
        (shard,) = open_corpus(location, ["en"]).shards["en"]
        with pytest.raises(InputError, match=r"en\.parquet"):
            for documents in shard.read(range(shard.unit_count)):
                list(documents)


def test_the_paper_s_evaluation_text_needs_no_more_than_its_name() -> None:
    corpus = parse_location({"dataset": "xlsum", "split": "test"})
    assert isinstance(corpus, HubCorpus) and isinstance(corpus.config, dict)
    assert (corpus.dataset, corpus.revision, corpus.split) == ("csebuetnlp/xlsum", "refs/convert/parquet", "test")
    assert {corpus.config[code] for code in PAPER_LANGUAGES} >= {"chinese_traditional", "swahili", "igbo"}
    assert parse_location({"dataset": "xlsum"}) == parse_location({**KNOWN["xlsum"]})
    with pytest.raises(InputError, match="language 'eu': no config of dataset csebuetnlp/xlsum"):
        open_corpus({"dataset": "xlsum"}, ["eu"])


def test_columns_that_nobody_reads_may_be_of_any_type(tmp_path: Path) -> None:
    """Null in one shard, text in the next; numbers, then text; the text itself absent in the first."""
    texts = some_texts("en", 6)
    columns = [
        {"text": pa.nulls(3), "note": pa.nulls(3), "when": [1, 2, 3]},
        {"text": texts[:3], "note": ["a", "b", "c"], "when": ["x", "y", "z"]},
        {"text": pa.array(texts[3:]).dictionary_encode(), "other": [{"deep": 1}] * 3},
    ]
    for number, own in enumerate(columns):
        pq.write_table(pa.table(own), tmp_path / f"en-{number}.parquet")
    corpus = open_corpus({"dataset": "parquet", "data_files": str(tmp_path / "{language}-*.parquet")}, ["en"])
    read = [one.text for shard in corpus.shards["en"] for unit in shard.read(range(shard.unit_count)) for one in unit]
    assert read == texts
    assert [len(shard.extents) for shard in corpus.shards["en"]] == [0, 1, 1]


@pytest.mark.parametrize("first", ['{"text": "mto", "note": null}', '{"text": "mto", "note": {"deep": 1}}'])
def test_a_stream_that_cannot_be_read_names_shard_and_column(tmp_path: Path, tokenizer: Path, first: str) -> None:
    lines = [first, '{"text": "umejaa", "note": [["x"], 3]}', '{"text": 3, "note": 5}']
    for number, line in enumerate(lines):
        (tmp_path / f"en-{number}.jsonl").write_text(line + "\n")
    location = {"dataset": "json", "data_files": str(tmp_path / "{language}-*.jsonl")}
    with pytest.raises(InputError, match=r"en-\*\.jsonl:train\[\d\].*column 'text'") as caught:
        drawn_here(request(location, tokenizer, {"en": 2}))
    assert "\n" not in str(caught.value)


def test_files_of_a_stream_weigh_as_much_as_they_hold_text_at_most(tmp_path: Path) -> None:
    texts = some_texts("en", 30)
    write_jsonl(tmp_path / "en-0.jsonl", texts[:5])
    write_jsonl(tmp_path / "en-1.jsonl.gz", texts[5:])
    corpus = open_corpus({"dataset": "json", "data_files": str(tmp_path / "{language}-*")}, ["en"])
    (shard,) = corpus.shards["en"]
    for part, (extent, own) in enumerate(zip(shard.extents, (texts[:5], texts[5:]), strict=True)):
        found = list(shard.addressed(part, Wanted()))
        assert [one.document.text for one in found] == own and found[-1].end <= extent
    assert len(open_corpus({"dataset": "json", "data_files": str(tmp_path / "{language}-0*")}, ["en"]).units("en")) == 1
