"""One token may stand for more text than 16 bits count: all its bytes are kept, from the tokenizer to the scores."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from mbs_ray.evaluation.comparison import refuse_other_tokens
from mbs_ray.evaluation.perplexity import language_scores
from mbs_ray.evaluation.token_scores import write_token_scores
from mbs_ray.text.segment_file import SegmentSet, write_segments
from mbs_ray.text.segment_request import SegmentRequest
from mbs_ray.text.shards import Document
from mbs_ray.text.tokenization import DocumentTokenizer, Join
from tests.support.texts import drawn_here, some_texts, write_parquet

LENGTH = 16
PADDED = "bei" + " " * 70_000 + "jedwali"


@pytest.fixture(scope="module")
def unigram(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As sentencepiece makes them: runs of white space are one space, runs of unknown characters one token."""
    folder = tmp_path_factory.mktemp("unigram")
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Replace(Regex(r"\s+"), " ")
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<s>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=200, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(some_texts("sw", 40), trainer)
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("join", ["end_token", "blank_line"])
@pytest.mark.parametrize("text", [PADDED, "neno " + "漢字" * 12_000], ids=["blanks", "unknown script"])
def test_a_token_for_much_text_counts_all_its_bytes(unigram: Path, join: Join, text: str) -> None:
    (stream,) = DocumentTokenizer(str(unigram), join).tokenize([Document("d", text, len(text.encode()))])
    assert int(stream.bytes.sum()) == len(text.encode())
    assert stream.bytes.max() > 2**16


@pytest.fixture
def padded(unigram: Path, tmp_path: Path) -> SegmentSet:
    write_parquet(tmp_path / "corpus" / "sw.parquet", [PADDED, *some_texts("sw", 9)], 100)
    asked = SegmentRequest(str(tmp_path / "corpus"), str(unigram), ("sw",), None, LENGTH)
    drawn = drawn_here(asked)
    return write_segments(tmp_path / "segments.parquet", "f", {"sequence_length": LENGTH}, drawn)


def test_segments_and_scores_keep_them(padded: SegmentSet, tmp_path: Path) -> None:
    segments = padded.read()
    assert segments.bytes.max() > 2**16
    scores = tmp_path / "scores.parquet"
    write_token_scores(scores, padded, torch.ones(len(segments), LENGTH - 1))
    scored = segments.document_index[:, 1:] >= 0
    assert language_scores(scores)["sw"].bytes == int(segments.bytes[:, 1:][scored].astype(np.int64).sum()) > 70_000


def test_files_of_the_time_of_16_bits_are_read_and_compared(padded: SegmentSet, tmp_path: Path) -> None:
    """A set of segments, and token scores, whose bytes are stored as uint16."""
    table = pq.read_table(padded.path)
    narrow = pa.FixedSizeListArray.from_arrays(
        pa.array(np.minimum(table["bytes"].combine_chunks().flatten().to_numpy(), 9).astype(np.uint16)), LENGTH
    )
    metadata = table.schema.metadata
    place = table.schema.get_field_index("bytes")
    old = table.set_column(place, "bytes", narrow).replace_schema_metadata(metadata)
    pq.write_table(old, tmp_path / "old.parquet")
    then = SegmentSet.open(tmp_path / "old.parquet")
    segments = then.read()
    assert segments.bytes.dtype == np.uint16 and (segments.token_ids == padded.read().token_ids).all()
    files = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    for path in files:
        write_token_scores(path, then, torch.ones(len(segments), LENGTH - 1))
    scores = pq.read_table(files[1])
    place = scores.schema.get_field_index("bytes")
    pq.write_table(scores.set_column(place, "bytes", scores["bytes"].cast(pa.uint16())), files[1])
    refuse_other_tokens("x", *files)
    assert language_scores(files[0])["sw"].bytes == language_scores(files[1])["sw"].bytes
