"""Codes of languages: what is one, what it is called, and that none leads out of a folder or is refused by MLflow."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mbs_ray.errors import InputError
from mbs_ray.languages.codes import RESERVED, base_language, check_code, is_well_formed, language_name, shortest_code
from mbs_ray.languages.distribution import (
    DISTRIBUTION_FILE,
    UnknownDistributionError,
    languages_of,
    model_distribution,
    parse_languages,
)
from mbs_ray.languages.facts import LANGUAGES
from mbs_ray.run.journal import check_name

CODES = ["de", "ru", "ja", "ko", "sr-Latn", "pt-BR", "eng_Latn", "zho_Hans", "be-x-old", "tum", "yue", "ca-valencia"]


@pytest.mark.parametrize("code", [*CODES, *LANGUAGES])
def test_well_formed_codes_are_languages_whether_our_table_has_them_or_not(code: str) -> None:
    assert check_code(code) == code
    assert parse_languages([code]) == (code,)


def test_names_are_those_of_the_table_and_else_of_the_library() -> None:
    names = {"de": "German", "ja": "Japanese", "sr-Latn": "Serbian (Latin)", "eng_Latn": "English", "sw": "Swahili"}
    assert {code: language_name(code) for code in names} == names
    assert all(language_name(code) == language.name for code, language in LANGUAGES.items())
    assert language_name("xx") == language_name("klingon") == ""


def test_a_script_that_goes_without_saying_is_left_out() -> None:
    shortest = {"eng_Latn": "en", "deu-Latn": "de", "kor_Hang": "ko", "srp_Latn": "sr-Latn", "zho_Hans": "zh-Hans"}
    assert {code: shortest_code(code) for code in shortest} == shortest
    assert all(shortest_code(code) == code for code in LANGUAGES)
    assert shortest_code("klingon") == "klingon"
    assert shortest_code("xx_Latn") == "xx_Latn"  # a code of the right form that is no language's
    assert [base_language(code) for code in ("zh-Hant", "eng_Latn", "sr-Latn", "tum")] == ["zh", "en", "sr", "tum"]


@given(st.text(max_size=40))
def test_what_passes_is_one_name_of_a_file_and_one_that_mlflow_takes(text: str) -> None:
    try:
        code = check_code(text)
    except InputError as error:
        assert "\n" not in str(error)
        assert not is_well_formed(text) or text in RESERVED
        return
    assert code.isascii() and Path(f"/corpus/{code}.txt").parent == Path("/corpus")
    check_name(f"ppl_increase_ci95_low_validation/{code}")


@pytest.mark.parametrize(
    "code", ["हिन्दी", "O'zbek", "sr@latin", "../x", "..", "a/b", "en.txt", "", " ", "e", "en-", "en\n"]
)
def test_what_is_no_code_is_refused_in_one_line_that_begins_with_where(code: str) -> None:
    with pytest.raises(InputError, match=r"^file\.json: language .*no code of a language") as error:
        check_code(code, "file.json")
    assert "\n" not in str(error.value)


def test_the_distribution_of_a_hub_repository_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the library's own cache, where a fetched file lies; nothing else is known without a network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--someone--multilingual"
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    (repository / "refs" / "v2").write_text(commit)
    text = '{"source": "its card", "unit": "tokens", "languages": {"de": 3, "en": 5}}'
    (snapshot / DISTRIBUTION_FILE).write_text(text)
    assert model_distribution("someone/multilingual").source == "its card"
    assert model_distribution("someone/multilingual", revision="v2").amounts == {"en": 5.0, "de": 3.0}
    assert languages_of("someone/multilingual", "all") == ("en", "de")
    assert languages_of("someone/multilingual", "ja,de") == ("de", "ja")
    with pytest.raises(UnknownDistributionError):
        model_distribution("someone/else")
    with pytest.raises(InputError, match=r'"all" are those of the model.s distribution, and none is known'):
        languages_of("someone/else", "all")
    (snapshot / DISTRIBUTION_FILE).write_text(text.replace("de", "../de"))
    with pytest.raises(InputError, match=rf"{DISTRIBUTION_FILE}: language '\.\./de'"):
        model_distribution("someone/multilingual")
