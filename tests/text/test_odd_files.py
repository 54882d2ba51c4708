"""Files as Windows, pandas, Spark and long-window compressors leave them are read, or refused in one line."""

import gzip
import io
import json
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from mbs_ray.errors import InputError
from mbs_ray.text.corpus import open_corpus
from tests.support.texts import drawn_here, request, rows_of, some_texts, write_jsonl, write_parquet, write_txt

BOM = b"\xef\xbb\xbf"


def texts_of(folder: Path) -> list[str]:
    corpus = open_corpus(folder, ["sw"])
    units = [(shard, unit) for shard in corpus.shards["sw"] for unit in range(shard.unit_count)]
    return [document.text for shard, unit in units for documents in shard.read([unit]) for document in documents]


@pytest.mark.parametrize("name", ["sw.jsonl", "sw.json", "sw.jsonl.gz", "sw.txt"])
def test_a_byte_order_mark_is_no_text_even_in_the_middle_of_files_put_together(tmp_path: Path, name: str) -> None:
    texts = some_texts("sw", 6)
    halves = []
    for own in (texts[:3], texts[3:]):
        plain = tmp_path / "half.txt" if name == "sw.txt" else tmp_path / "half.jsonl"
        (write_txt if name == "sw.txt" else write_jsonl)(plain, own)
        halves.append(BOM + plain.read_bytes() + b"\n")
    content = b"".join(map(gzip.compress, halves)) if name.endswith(".gz") else b"".join(halves)
    (tmp_path / name).write_bytes(content)
    assert texts_of(tmp_path) == texts


def test_a_mark_alone_is_a_blank_line(tmp_path: Path) -> None:
    (tmp_path / "sw.txt").write_bytes(BOM + b"\r\n" + BOM + b"mto\numejaa\n" + BOM + b"\nhuo")
    assert texts_of(tmp_path) == ["mto\numejaa", "huo"]


@pytest.mark.parametrize("column", ["category", "null"])
def test_categories_are_text_and_a_shard_of_nulls_is_a_shard_without_any(
    tmp_path: Path, tokenizer: Path, column: str
) -> None:
    texts = some_texts("sw", 40)
    (tmp_path / "odd" / "sw").mkdir(parents=True)
    if column == "category":
        pd.DataFrame({"text": pd.Categorical(texts)}).to_parquet(tmp_path / "odd" / "sw" / "a.parquet")
    else:
        write_parquet(tmp_path / "odd" / "sw" / "a.parquet", texts, 100)
        pq.write_table(pa.table({"text": pa.nulls(3)}), tmp_path / "odd" / "sw" / "b.parquet")
    write_parquet(tmp_path / "plain" / "sw" / "a.parquet", texts, 100)
    assert texts_of(tmp_path / "odd") == texts
    for segments in (3, 60):  # at places, and from all
        odd, plain = (
            rows_of(drawn_here(request(tmp_path / folder, tokenizer, {"sw": segments}))["sw"])
            for folder in ("odd", "plain")
        )
        assert len(odd) == segments and (column == "category" or odd == plain)


def test_repeated_categories_weigh_as_much_as_they_stand_for(tmp_path: Path) -> None:
    """Three texts in a thousand rows: the footer knows the bytes of three."""
    texts = some_texts("sw", 3) * 333
    pd.DataFrame({"text": pd.Categorical(texts)}).to_parquet(tmp_path / "sw.parquet")
    assert open_corpus(tmp_path, ["sw"]).extents("sw") == [sum(len(text.encode()) + 1 for text in texts)]


def test_columns_that_are_no_text_or_two_are_one_line(tmp_path: Path) -> None:
    twice = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    numbers = pa.table({"text": pa.array([1, 2]).dictionary_encode()})
    for table, message in ((twice, "2 columns named 'text'"), (numbers, "'text' holds int64, not text")):
        pq.write_table(table, tmp_path / "sw.parquet")
        with pytest.raises(InputError, match=message) as caught:
            open_corpus(tmp_path, ["sw"])
        assert "sw.parquet" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("log", [28, 31])
def test_zstd_with_a_long_window_is_read(tmp_path: Path, log: int) -> None:
    texts = some_texts("sw", 20)
    parameters = zstandard.ZstdCompressionParameters(window_log=log, enable_ldm=True)
    made = io.BytesIO()
    with zstandard.ZstdCompressor(compression_params=parameters).stream_writer(made, closefd=False) as writer:
        writer.write("".join(json.dumps({"text": text}) + "\n" for text in texts).encode())
    (tmp_path / "sw.jsonl.zst").write_bytes(made.getvalue())
    assert texts_of(tmp_path) == texts


def test_skippable_frames_and_zeros_at_the_end_are_no_text(tmp_path: Path) -> None:
    texts = some_texts("sw", 20)
    content = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    skippable = b"\x50\x2a\x4d\x18\x03\0\0\0abc"
    (tmp_path / "sw.jsonl.zst").write_bytes(skippable + zstandard.compress(content) + skippable)
    assert texts_of(tmp_path) == texts
    (tmp_path / "sw.jsonl.zst").unlink()
    (tmp_path / "sw.jsonl.gz").write_bytes(gzip.compress(content) + bytes(1000))
    assert texts_of(tmp_path) == texts
    assert open_corpus(tmp_path, ["sw"]).extents("sw")[0] >= len(content)


def test_empty_shards_beside_full_ones_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "sw").mkdir()
    write_jsonl(tmp_path / "sw" / "part-00000.jsonl", some_texts("sw", 5))
    for name in ("part-00001.jsonl", "part-00002.txt", "part-00003.parquet"):
        (tmp_path / "sw" / name).touch()
    (tmp_path / "sw" / "part-00004.jsonl.gz").write_bytes(gzip.compress(b""))
    write_parquet(tmp_path / "sw" / "part-00005.parquet", [], 5)
    assert texts_of(tmp_path) == some_texts("sw", 5)


@pytest.mark.parametrize("suffix", ["parquet", "json", "txt"])
def test_a_folder_may_be_named_as_spark_names_it(tmp_path: Path, suffix: str) -> None:
    folder = tmp_path / f"sw.{suffix}"
    folder.mkdir()
    for name in ("_SUCCESS", "._SUCCESS.crc"):
        (folder / name).touch()
    if suffix == "parquet":
        write_parquet(folder / "part-00000.snappy.parquet", some_texts("sw", 5), 5)
    else:
        (write_txt if suffix == "txt" else write_jsonl)(folder / f"part-00000.{suffix}", some_texts("sw", 5))
    assert texts_of(tmp_path) == some_texts("sw", 5)
    with pytest.raises(InputError, match=r"no file in .*; languages there: sw$"):
        open_corpus(tmp_path, ["en"])


def test_a_compressed_file_that_is_none_or_cut_short_is_one_line(tmp_path: Path) -> None:
    for name, content in (
        ("sw.jsonl.zst", zstandard.compress(b'{"text": "mto"}\n' * 99)[:-3]),
        ("sw.jsonl.zst", b"(\xb5/\xfd"),
        ("sw.jsonl.gz", b"\x1f\x8b\x08"),
        ("sw.jsonl.gz", b"PK\x03\x04 a zip"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=f"{name}: cannot be read") as caught:
            texts_of(tmp_path)
        assert "\n" not in str(caught.value)
        (tmp_path / name).unlink()
