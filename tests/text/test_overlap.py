"""Documents that are in calibration and evaluation are found by their text, whatever segments they lie in."""

import unicodedata
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from mbs_ray.errors import InputError
from mbs_ray.text.overlap import refuse_overlap
from mbs_ray.text.segment_file import SegmentSet, write_segments
from mbs_ray.text.segment_request import SegmentRequest
from mbs_ray.text.shards import Document, Source
from tests.support.texts import drawn_here, request, some_texts, write_parquet, write_txt

LENGTH = 32


def whole(folder: Path, tokenizer: Path, texts: dict[str, list[str]]) -> SegmentSet:
    """All text of these documents as a file of segments, drawn in this process."""
    for language, documents in texts.items():
        folder.mkdir(parents=True, exist_ok=True)
        write_txt(folder / f"{language}.txt", documents)
    asked = SegmentRequest(str(folder), str(tokenizer), tuple(texts), None, LENGTH)
    return write_segments(folder / "segments.parquet", "f", {"sequence_length": LENGTH}, drawn_here(asked))


def test_a_shared_document_is_named_with_language_set_number_and_text(tmp_path: Path, tokenizer: Path) -> None:
    english, swahili = some_texts("en", 30), some_texts("sw", 30)
    calibration = whole(tmp_path / "a", tokenizer, {"en": english[:20], "sw": swahili[:20]})
    evaluation = whole(tmp_path / "b", tokenizer, {"en": english[20:], "sw": [*swahili[20:25], *swahili[3:5]]})
    with pytest.raises(InputError) as caught:
        refuse_overlap("held-out", evaluation, calibration)
    message = str(caught.value)
    assert message.startswith(
        "evaluation.held-out: language 'sw' shares 2 of its 7 documents with the calibration text;"
    )
    assert "one is sw.txt@" in message and f": {' '.join(swahili[3].split())[:60]!r};" in message
    assert message.endswith("take these documents out of one of the two corpora") and "\n" not in message


def test_disjoint_documents_of_one_folder_are_accepted_and_shared_ones_are_not(tmp_path: Path, tokenizer: Path) -> None:
    """Two draws of few of many documents, whose labels tell whether they share one."""
    write_txt(tmp_path / "en.txt", some_texts("en", 400))
    outcomes = set()
    for seed in range(1, 12):
        sets, labels = [], []
        for place, own in enumerate((0, seed)):
            drawn = drawn_here(request(tmp_path, tokenizer, {"en": 12}, seed=own))
            path = tmp_path / f"{seed}-{place}.parquet"
            sets.append(write_segments(path, "f", {"sequence_length": LENGTH}, drawn))
            labels.append({label for segment in drawn["en"].segments for label in segment.documents})
        share = bool(labels[0] & labels[1])
        outcomes.add(share)
        if share:
            with pytest.raises(InputError, match="shares"):
                refuse_overlap("x", *sets)
        else:
            refuse_overlap("x", *sets)
    assert outcomes == {True, False}


def test_the_same_text_in_another_language_is_no_overlap_and_several_languages_are_all_named(
    tmp_path: Path, tokenizer: Path
) -> None:
    english, swahili = some_texts("en", 20), some_texts("sw", 20)
    calibration = whole(tmp_path / "a", tokenizer, {"en": english, "sw": swahili})
    refuse_overlap("x", whole(tmp_path / "b", tokenizer, {"fr": english}), calibration)
    with pytest.raises(InputError, match=r"language 'en' shares 20 of its 20 .*, and so do languages sw; one is"):
        refuse_overlap("x", calibration, calibration)


def test_a_document_of_which_a_segment_holds_only_the_end_counts(tmp_path: Path, tokenizer: Path) -> None:
    """Segments run over the borders of documents, so the shared one lies at the end of one segment or within two."""
    texts = some_texts("en", 12)
    calibration = whole(tmp_path / "a", tokenizer, {"en": texts[:6]})
    for place in range(7):
        documents = [*texts[6:][:place], texts[0], *texts[6:][place:]]
        evaluation = whole(tmp_path / str(place), tokenizer, {"en": documents})
        with pytest.raises(InputError, match="shares 1 of its 7 documents"):
            refuse_overlap("x", evaluation, calibration)


def test_spaces_and_decomposed_letters_make_no_other_document_and_letters_do() -> None:
    text = "Mto ulikuwa umejaa, café\nna hakuna aliyeuvuka."
    source = Source.of(Document("label", text, 0))
    assert source.beginning == "Mto ulikuwa umejaa, café na hakuna aliyeuvuka."
    for same in (text.replace(" ", "  "), f"\n{text}\r\n", unicodedata.normalize("NFD", text)):
        other = Source.of(Document("label", same, 0))
        assert same != text and other._replace(composed=True) == source
        assert other.composed == unicodedata.is_normalized("NFC", same)
    assert Source.of(Document("label", text.upper(), 0)).digest != source.digest


def test_a_file_of_an_earlier_version_is_no_file_of_segments(tmp_path: Path, tokenizer: Path) -> None:
    """It is drawn again: what it lacks is needed here."""
    written = whole(tmp_path / "a", tokenizer, {"en": some_texts("en", 9)})
    table = pq.read_table(written.path)
    pq.write_table(table.drop_columns(["digests", "beginnings"]), written.path)
    with pytest.raises(InputError, match="not a file of segments"):
        SegmentSet.open(written.path)


@pytest.mark.parametrize("blank", ["   \n\n  ", "\u3000", "\u200b\u200d\ufeff", "\x00"])
def test_blank_documents_are_no_shared_text_whatever_they_are_made_of(
    tmp_path: Path, tokenizer: Path, blank: str
) -> None:
    texts = some_texts("sw", 12)
    sets = []
    for folder, own in (("a", texts[:6]), ("b", texts[6:])):
        write_parquet(tmp_path / folder / "sw.parquet", [text for one in own for text in (one, blank)], 100)
        asked = SegmentRequest(str(tmp_path / folder), str(tokenizer), ("sw",), None, LENGTH)
        path = tmp_path / f"{folder}.parquet"
        sets.append(write_segments(path, "f", {"sequence_length": LENGTH}, drawn_here(asked)))
    assert all(any(source.blank for source in one.sources()["sw"]) for one in sets)
    refuse_overlap("x", *sets)
    with pytest.raises(InputError, match="shares 6 of its 6 documents"):
        refuse_overlap("x", sets[0], sets[0])
