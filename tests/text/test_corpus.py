"""Corpora in every format give the same documents, and what is wrong with them is one line."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from mbs_ray.errors import InputError
from mbs_ray.text import text_shard
from mbs_ray.text.corpus import SUFFIXES, Corpus, open_corpus, parse_location, require_languages
from mbs_ray.text.shards import Document
from tests.support.texts import some_texts, write_jsonl, write_parquet, write_txt

Writer = Callable[[Path, list[str]], None]
WRITERS: dict[str, Writer] = {
    ".parquet": lambda path, texts: write_parquet(path, texts, 7),
    ".jsonl": write_jsonl,
    ".jsonl.gz": write_jsonl,
    ".jsonl.zst": write_jsonl,
    ".json": write_jsonl,
    ".json.gz": write_jsonl,
    ".json.zst": write_jsonl,
    ".txt": write_txt,
}


def all_documents(corpus: Corpus, language: str) -> list[Document]:
    """Every unit of every shard, the last first, so that none can lean on the one before it."""
    found: list[Document] = []
    for shard in reversed(corpus.shards[language]):
        for documents in shard.read(range(shard.unit_count)[::-1]):
            found = list(documents) + found
    return found


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("language", ["en", "zh-Hans"])
def test_every_format_gives_every_document_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, language: str
) -> None:
    monkeypatch.setattr(text_shard, "UNIT_BYTES", 1000)
    texts = some_texts(language, 50)
    WRITERS[suffix](tmp_path / f"{language}{suffix}", texts)
    documents = all_documents(open_corpus(str(tmp_path), [language]), language)
    assert [document.text for document in documents] == texts
    assert [document.size for document in documents] == [len(text.encode()) for text in texts]
    assert len({document.label for document in documents}) == len(texts)


@pytest.mark.parametrize("unit_bytes", [1, 2, 3, 7, 30, 1000])
def test_paragraphs_and_lines_are_found_wherever_the_ranges_are_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unit_bytes: int
) -> None:
    monkeypatch.setattr(text_shard, "UNIT_BYTES", unit_bytes)
    (tmp_path / "en.txt").write_bytes(b"\n \nab\ncd\r\n\r\n\n\xc3\xa9\n\t\nlast line\nwithout end")
    (tmp_path / "sw.jsonl").write_bytes(b'{"text": "ab"}\n\n{"text": null}\n{"text": "cd"}')
    corpus = open_corpus(tmp_path, ["en", "sw"])
    assert [document.text for document in all_documents(corpus, "en")] == ["ab\ncd", "é", "last line\nwithout end"]
    assert [document.text for document in all_documents(corpus, "sw")] == ["ab", "cd"]
    assert [document.label for document in all_documents(corpus, "en")] == ["en.txt@3", "en.txt@13", "en.txt@18"]


def test_shards_of_a_folder_are_read_by_name_and_units_numbered_over_them(tmp_path: Path) -> None:
    texts = some_texts("en", 30)
    write_parquet(tmp_path / "en" / "b.parquet", texts[20:], 4)
    write_parquet(tmp_path / "en" / "a.parquet", texts[:20], 8)
    (tmp_path / "en" / "_SUCCESS").touch()
    corpus = open_corpus(tmp_path, ["en"])
    documents = all_documents(corpus, "en")
    assert [document.text for document in documents] == texts
    assert documents[19].label == "en/a.parquet#19" and documents[20].label == "en/b.parquet#0"
    assert corpus.units("en") == [
        *((0, unit) for unit in range(3)),
        *((1, unit) for unit in range(3)),
    ]


def test_another_text_column_can_be_named_and_nulls_are_no_documents(tmp_path: Path) -> None:
    write_parquet(tmp_path / "en.parquet", ["a", None, "b"], 2, column="content")
    corpus = open_corpus({"folder": str(tmp_path), "text_column": "content"}, ["en"])
    assert [(document.label, document.text) for document in all_documents(corpus, "en")] == [
        ("en.parquet#0", "a"),
        ("en.parquet#2", "b"),
    ]


def test_the_identity_is_of_the_content_not_the_place(tmp_path: Path) -> None:
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
        write_parquet(tmp_path / place / "en.parquet", some_texts("en", 20), 5)
    assert open_corpus(tmp_path / "one", ["en"]).identity == open_corpus(tmp_path / "two", ["en"]).identity
    write_parquet(tmp_path / "two" / "en.parquet", [*some_texts("en", 20)[:-1], "x"], 5)
    assert open_corpus(tmp_path / "one", ["en"]).identity != open_corpus(tmp_path / "two", ["en"]).identity


def fails(folder: Path, languages: list[str], *parts: str, read: bool = False) -> None:
    with pytest.raises(InputError) as error:
        corpus = open_corpus(str(folder), languages)
        if read:
            for language in languages:
                all_documents(corpus, language)
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_a_language_without_a_file_is_named_with_those_there(tmp_path: Path) -> None:
    write_txt(tmp_path / "en.txt", ["a"])
    (tmp_path / "sw").mkdir()
    fails(tmp_path, ["en", "yo"], "'yo'", str(tmp_path), "en, sw")
    fails(tmp_path, ["sw"], "'sw'", "no file")


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    fails(tmp_path / "nowhere", ["en"], "nowhere")


def test_two_files_for_a_language_are_too_many(tmp_path: Path) -> None:
    write_txt(tmp_path / "en.txt", ["a"])
    write_jsonl(tmp_path / "en.jsonl", ["a"])
    fails(tmp_path, ["en"], "en.jsonl", "en.txt")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_empty_file_is_named(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"en{suffix}").touch()
    fails(tmp_path, ["en"], str(tmp_path / f"en{suffix}"), "empty")


def test_a_parquet_file_without_rows_is_named(tmp_path: Path) -> None:
    write_parquet(tmp_path / "en.parquet", [], 5)
    fails(tmp_path, ["en"], "en.parquet", "no rows")


def test_a_file_of_another_format_is_not_passed_over(tmp_path: Path) -> None:
    write_parquet(tmp_path / "en" / "a.parquet", ["a"], 5)
    (tmp_path / "en" / "b.csv").write_text("a")
    fails(tmp_path, ["en"], "b.csv", ".jsonl.zst")


def test_a_truncated_parquet_file_is_named(tmp_path: Path) -> None:
    write_parquet(tmp_path / "en.parquet", some_texts("en", 50), 5)
    content = (tmp_path / "en.parquet").read_bytes()
    for size in (3, len(content) // 2, len(content) - 1):
        (tmp_path / "en.parquet").write_bytes(content[:size])
        fails(tmp_path, ["en"], "en.parquet", "not a readable parquet file")


def test_a_missing_column_is_named_with_those_there(tmp_path: Path) -> None:
    write_parquet(tmp_path / "en.parquet", ["a"], 5, column="content")
    fails(tmp_path, ["en"], "en.parquet", "'text'", "id, content")
    write_jsonl(tmp_path / "sw.jsonl", ["a"])
    (tmp_path / "sw.jsonl").write_text('{"text": "a"}\n{"content": "b"}\n')
    fails(tmp_path, ["sw"], "sw.jsonl", "line 2", "'text'", read=True)


def test_a_column_of_numbers_is_no_text(tmp_path: Path) -> None:
    write_parquet(tmp_path / "en.parquet", ["a"], 5)
    with pytest.raises(InputError, match=r"'id' holds int64"):
        open_corpus({"folder": str(tmp_path), "text_column": "id"}, ["en"])


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst"])
@pytest.mark.parametrize(
    ("line", "what"),
    [
        (b'{"text": "caf\xe9"}', "not valid UTF-8"),
        (b'{"text": "cut', "not valid JSON"),
        (b'["text"]', "no field 'text'"),
        (b'{"text": 3}', "no text in field"),
        (b'{"text": "\\ud800"}', "half of a surrogate pair"),
    ],
)
def test_a_bad_line_of_jsonl_is_named_by_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, line: bytes, what: str
) -> None:
    monkeypatch.setattr(text_shard, "UNIT_BYTES", 500)
    write_jsonl(tmp_path / f"en{suffix}", some_texts("en", 30))
    good = [json.dumps({"text": text}).encode() for text in some_texts("en", 30)]
    content = b"\n".join([*good[:20], b"", line, *good[20:]])
    compress = {
        ".jsonl": bytes,
        ".jsonl.gz": gzip.compress,
        ".jsonl.zst": zstandard.compress,
    }
    (tmp_path / f"en{suffix}").write_bytes(compress[suffix](content))
    fails(tmp_path, ["en"], f"en{suffix}", "line 22 ", what, read=True)


def test_invalid_utf8_in_plain_text_is_named_by_line(tmp_path: Path) -> None:
    (tmp_path / "en.txt").write_bytes(b"one\n\ntwo\nthr\xff\xffee\n\nfour\n")
    fails(tmp_path, ["en"], "en.txt", "line 4 is not valid UTF-8", read=True)


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst"])
def test_a_truncated_compressed_file_is_no_shorter_text(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"en{suffix}"
    write_jsonl(path, some_texts("en", 50))
    path.write_bytes(path.read_bytes()[:-15])
    fails(tmp_path, ["en"], path.name, "cannot be read", read=True)
    path.write_bytes(b"this was never compressed")
    fails(tmp_path, ["en"], path.name, "cannot be read", read=True)


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ({"path": "x"}, "either 'folder' or 'dataset'"),
        ({"folder": "x", "dataset": "y"}, "either 'folder' or 'dataset'"),
        ({"folder": "x", "splt": "train"}, "unknown field 'splt'; its fields: folder, text_column, chat"),
        ({"folder": 3}, "'folder' must be a text"),
        ({"dataset": "x", "config": 3}, "'config' must be a text"),
    ],
)
def test_a_location_that_makes_no_sense_is_one_line(location: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_corpus(location, ["en"])


def test_no_language_leads_out_of_the_folder(tmp_path: Path) -> None:
    write_txt(tmp_path / "outside.txt", ["one", "two"])
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    write_txt(corpus / "en.txt", ["one", "two"])
    for check in (require_languages, open_corpus):
        check(corpus, ["en"])
        with pytest.raises(InputError, match=r"language '\.\./outside': no code of a language"):
            check(corpus, ["../outside"])
        with pytest.raises(InputError, match=r"language 'sw': no file in .*; languages there: en"):
            check(corpus, ["sw"])


def test_norwegian_as_yaml_reads_it_is_named_among_the_configs() -> None:
    with pytest.raises(InputError, match=r"corpus.config: language false: YAML reads no .*'no'"):
        parse_location({"dataset": "json", "config": {False: "default", "en": "default"}})
    with pytest.raises(InputError, match=r"corpus: field 'config.en' must be a text, not 3"):
        parse_location({"dataset": "json", "config": {"en": 3}})
