"""The demo's parallel text: complete in 20 languages, clean, and as its README says."""

import re
import unicodedata
from importlib.resources import files
from pathlib import Path

import pytest

from mbs_ray.languages.facts import LANGUAGES, PAPER_LANGUAGES

TEXT = Path(str(files("mbs_ray") / "mini" / "text"))
PASSAGES = 9
MORE_ENGLISH = 22
SCRIPTS = {
    "Arab": "ARABIC",
    "Beng": "BENGALI",
    "Deva": "DEVANAGARI",
    "Gujr": "GUJARATI",
    "Hans": "CJK",
    "Hant": "CJK",
    "Latn": "LATIN",
    "Taml": "TAMIL",
    "Telu": "TELUGU",
}


def read(part: str, language: str) -> str:
    return (TEXT / part / f"{language}.txt").read_bytes().decode()


def passages(part: str, language: str) -> list[str]:
    return read(part, language).rstrip("\n").split("\n\n")


@pytest.mark.parametrize("part", ["evaluation", "calibration"])
def test_there_is_one_file_for_each_of_the_papers_languages(part: str) -> None:
    assert {path.name for path in (TEXT / part).iterdir()} == {f"{language}.txt" for language in PAPER_LANGUAGES}


@pytest.mark.parametrize("language", PAPER_LANGUAGES)
def test_every_language_has_the_same_passages(language: str) -> None:
    assert len(passages("evaluation", language)) == PASSAGES
    assert len(passages("calibration", language)) == PASSAGES + (MORE_ENGLISH if language == "en" else 0)
    for passage in passages("evaluation", language) + passages("calibration", language):
        assert passage.strip() == passage != ""
        assert "\n" not in passage


@pytest.mark.parametrize("language", PAPER_LANGUAGES)
def test_parallel_passages_are_of_like_length(language: str) -> None:
    """A passage that is missing half, or stands in another's place, differs from the language's usual ratio."""
    ratios = []
    for part in ("evaluation", "calibration"):
        pairs = zip(passages(part, language)[:PASSAGES], passages(part, "en")[:PASSAGES], strict=True)
        ratios += [len(passage) / len(english) for passage, english in pairs]
    usual = sorted(ratios)[len(ratios) // 2]
    assert all(0.75 < ratio / usual < 1.33 for ratio in ratios)


def test_no_passage_stands_there_twice() -> None:
    everything = [
        one for part in ("evaluation", "calibration") for code in PAPER_LANGUAGES for one in passages(part, code)
    ]
    assert len(set(everything)) == len(everything) == 2 * PASSAGES * len(PAPER_LANGUAGES) + MORE_ENGLISH


@pytest.mark.parametrize("part", ["evaluation", "calibration"])
@pytest.mark.parametrize("language", PAPER_LANGUAGES)
def test_the_text_is_clean_and_in_its_own_script(part: str, language: str) -> None:
    text = read(part, language)
    assert unicodedata.is_normalized("NFC", text)
    assert text.endswith("\n")
    # Joiners are part of the spelling in Indic scripts; no other invisible character is wanted.
    invisible = {character for character in text if unicodedata.category(character) in ("Cc", "Cf", "Cn", "Co", "Zl")}
    assert invisible <= {"\n", "\u200c", "\u200d"}
    letters = {character for character in text if unicodedata.category(character).startswith("L")}
    script = SCRIPTS[LANGUAGES[language].script]
    assert {unicodedata.name(letter).split()[0] for letter in letters} == {script}


@pytest.mark.parametrize("part", ["evaluation", "calibration"])
def test_both_chinese_texts_keep_to_their_own_characters(part: str) -> None:
    """GB 2312 holds simplified characters only, Big5 traditional ones only."""
    simplified, traditional = read(part, "zh-Hans"), read(part, "zh-Hant")
    simplified.encode("gb2312")
    traditional.encode("big5")
    with pytest.raises(UnicodeEncodeError):
        simplified.encode("big5")
    with pytest.raises(UnicodeEncodeError):
        traditional.encode("gb2312")


def test_every_text_is_large_enough() -> None:
    for language in PAPER_LANGUAGES:
        for part in ("evaluation", "calibration"):
            wanted = 16_000 if (part, language) == ("calibration", "en") else 3_000
            assert len(read(part, language).encode()) >= wanted, (part, language)


def test_the_readme_states_the_bytes_of_every_file() -> None:
    table = re.findall(
        r"^\| ([a-z]{2}(?:-Han[st])?) \| \D+ \| ([\d,]+) \| ([\d,]+) \|$",
        (TEXT / "README.md").read_text(),
        re.MULTILINE,
    )
    stated = {code: tuple(int(number.replace(",", "")) for number in numbers) for code, *numbers in table}
    assert stated == {
        code: tuple(len(read(part, code).encode()) for part in ("calibration", "evaluation"))
        for code in PAPER_LANGUAGES
    }
