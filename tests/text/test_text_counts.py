"""Text that the vocabulary lacks is counted, said and refused; text in another normal form is said once."""

import json
import unicodedata
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from mbs_ray.cli.terminal_tables import score_table
from mbs_ray.errors import InputError
from mbs_ray.evaluation.metric_names import UNKNOWN_SHARE, MetricNames
from mbs_ray.evaluation.perplexity import evaluation_metrics, language_scores
from mbs_ray.evaluation.text_warnings import UNKNOWN_KEY, text_warnings, unknown_warning
from mbs_ray.evaluation.token_scores import write_token_scores
from mbs_ray.text.segment_file import SegmentSet, write_segments
from mbs_ray.text.segment_request import SegmentRequest
from tests.support.texts import drawn_here, some_texts, write_parquet

LENGTH = 16
#: 60 bytes of Amharic, 20 letters.
AMHARIC = "ወንዙሞልቶነበርማንምአልተሻገረም"


@pytest.fixture(scope="module")
def unigram(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentencepiece-like vocabulary of Swahili: letters it never saw become one ``<unk>`` a word."""
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=["<unk>", "</s>"], unk_token="<unk>")
    made.train_from_iterator(some_texts("sw", 60), trainer)
    folder = tmp_path_factory.mktemp("unigram")
    PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", eos_token="</s>").save_pretrained(folder)
    return folder


def asked(folder: Path, tokenizer: Path, *languages: str) -> SegmentRequest:
    return SegmentRequest(folder, str(tokenizer), languages, None, LENGTH)


def spread(every: int) -> list[str]:
    """Swahili in which a word of Amharic follows that many words."""
    words = " ".join(some_texts("sw", 20)).split()
    return [
        " ".join(f"{word} {AMHARIC}" if place % every == 0 else word for place, word in enumerate(words[start:stop], 1))
        for start, stop in ((at, at + 200) for at in range(0, len(words), 200))
    ]


def test_unknown_text_is_counted_by_language_and_said_in_metrics_table_and_metadata(
    unigram: Path, tmp_path: Path
) -> None:
    write_parquet(tmp_path / "sw.parquet", spread(190), 1000)
    write_parquet(tmp_path / "en.parquet", some_texts("sw", 12, seed=5), 1000)
    drawn = drawn_here(asked(tmp_path, unigram, "en", "sw"))
    assert drawn["en"].facts["unknown_tokens"] == 0
    facts = drawn["sw"].facts
    # Counted by hand: every token without a letter of its own, with the bytes it was given.
    own = [(token, size) for one in drawn["sw"].segments for token, size in zip(one.token_ids, one.bytes, strict=True)]
    assert facts["unknown_tokens"] == sum(token == 0 for token, _ in own) >= 3
    assert facts["unknown_bytes"] == sum(size for token, size in own if token == 0) >= 60
    assert facts["bytes"] == sum(size for _, size in own)
    share = facts["unknown_bytes"] / facts["bytes"]
    assert 0.01 < share < 0.1
    written = write_segments(tmp_path / "x.parquet", "f", {"sequence_length": LENGTH}, drawn)
    scores = tmp_path / "scores.parquet"
    write_token_scores(scores, SegmentSet.open(written.path), torch.ones(len(written), LENGTH - 1))
    assert json.loads(pq.read_schema(scores).metadata[UNKNOWN_KEY]) == {"sw": share}
    found = language_scores(scores)
    assert {language: one.unknown for language, one in found.items()} == {"en": 0.0, "sw": share}
    names = MetricNames("udhr")
    metrics = evaluation_metrics(names, found, found)
    assert names.rows(UNKNOWN_SHARE, metrics) == {"sw": share} and metrics["unknown_share_udhr/sw"] == share
    said = f"unknown to the tokenizer: {100 * share:.1f} % of sw (bytes); perplexity and bits per byte flatter there"
    assert score_table("x", found).caption == said
    assert list(text_warnings([written.facts, written.facts])) == [said]


def test_a_script_that_the_vocabulary_lacks_is_refused_by_name(unigram: Path, tmp_path: Path) -> None:
    write_parquet(tmp_path / "sw.parquet", some_texts("sw", 12), 1000)
    write_parquet(tmp_path / "am.parquet", [f"{AMHARIC} " * 40, f"{AMHARIC[3:]} " * 40], 1000)
    with pytest.raises(InputError, match=r"does not know \d\d\.\d % of am of the text; .*leave it out") as refused:
        drawn_here(asked(tmp_path, unigram, "am", "sw"))
    assert "of sw" not in str(refused.value) and "\n" not in str(refused.value)
    assert drawn_here(asked(tmp_path, unigram, "sw"))["sw"].segments


def test_nothing_is_said_or_written_where_a_vocabulary_holds_all_text(tokenizer: Path, tmp_path: Path) -> None:
    write_parquet(tmp_path / "hi.parquet", some_texts("hi", 12), 1000)
    drawn = drawn_here(asked(tmp_path, tokenizer, "hi"))
    written = write_segments(tmp_path / "x.parquet", "f", {"sequence_length": LENGTH}, drawn)
    write_token_scores(tmp_path / "scores.parquet", written, torch.ones(len(written), LENGTH - 1))
    assert UNKNOWN_KEY not in (pq.read_schema(tmp_path / "scores.parquet").metadata or {})
    found = language_scores(tmp_path / "scores.parquet")
    assert not any(name.startswith("unknown") for name in evaluation_metrics(MetricNames(), found, found))
    assert unknown_warning({"hi": 0.005}) is None and score_table("x", found).caption is None
    assert list(text_warnings([written.facts])) == []
    assert list(text_warnings([{"hi": {"units": 1}}])) == []  # of an earlier version


def test_text_that_is_mostly_in_another_normal_form_is_said_once_and_has_the_same_bytes(
    tokenizer: Path, tmp_path: Path
) -> None:
    composed = [unicodedata.normalize("NFC", f"{text} nước sông dâng cao mùa xuân ấy") for text in some_texts("en", 20)]
    for form in ("NFC", "NFD"):
        (tmp_path / form).mkdir()
        texts = [unicodedata.normalize(form, text) for text in composed]
        write_parquet(tmp_path / form / "vi.parquet", texts, 1000)
        write_parquet(tmp_path / form / "en.parquet", some_texts("en", 12), 1000)
    (one, other) = (
        {language: drawn.facts for language, drawn in drawn_here(asked(tmp_path / form, tokenizer, "en", "vi")).items()}
        for form in ("NFC", "NFD")
    )
    assert one["vi"]["decomposed_documents"] == 0 < other["vi"]["decomposed_documents"] == other["vi"]["documents"]
    total = [facts["vi"]["bytes"] + facts["vi"]["dropped_bytes"] for facts in (one, other)]
    assert total[0] == total[1] == sum(len(text.encode()) for text in composed)
    assert list(text_warnings([one])) == []
    (said,) = text_warnings([other, one, other])
    assert said.startswith("text of vi is mostly not in the normal form NFC: ")


def test_a_token_that_the_embedding_has_no_row_for_is_refused(tokenizer: Path, tmp_path: Path) -> None:
    write_parquet(tmp_path / "en.parquet", some_texts("en", 12), 1000)
    request = asked(tmp_path, tokenizer, "en")
    request.__dict__["tokenizer_facts"] = request.tokenizer_facts._replace(rows=200)
    with pytest.raises(InputError, match=r"gives a token the id \d+, and the model's embedding has 200 rows"):
        drawn_here(request)
