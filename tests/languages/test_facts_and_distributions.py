"""Facts about languages, and the distributions of models."""

import json
import math
from pathlib import Path

import pytest

from mbs_ray.errors import InputError
from mbs_ray.languages.distribution import DISTRIBUTION_FILE, ROOTS, Distribution, model_distribution, parse_languages
from mbs_ray.languages.facts import LANGUAGES, PAPER_LANGUAGES, table_order


def test_there_are_the_46_languages_of_roots_in_the_order_of_the_paper() -> None:
    assert len(LANGUAGES) == 46
    assert list(LANGUAGES)[:4] == ["en", "zh-Hans", "fr", "es"]
    assert LANGUAGES["sw"].name == "Swahili"
    assert LANGUAGES["sw"].roots_bytes == 236_482_543
    assert LANGUAGES["ca"].xlsum is None and LANGUAGES["ca"].paper_segments is None


def test_the_paper_has_20_languages_and_256_segments() -> None:
    assert len(PAPER_LANGUAGES) == 20
    assert sum(LANGUAGES[code].paper_segments or 0 for code in PAPER_LANGUAGES) == 256


def test_languages_come_in_table_order_however_they_are_asked_for() -> None:
    assert parse_languages("sw, en,fr") == ("en", "fr", "sw")
    assert parse_languages(["sw", "en"]) == ("en", "sw")
    assert parse_languages("paper") == PAPER_LANGUAGES
    assert parse_languages("all", ROOTS) == tuple(LANGUAGES)


def test_a_distribution_adds_languages_and_says_which_are_all() -> None:
    distribution = Distribution("mine", "tokens", {"xx": 1.0, "sw": 2.0, "aa": 1.0})
    assert parse_languages("all", distribution) == ("sw", "aa", "xx")
    assert parse_languages("xx,en", distribution) == ("en", "xx")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("en,sr@latin", "'sr@latin'.*no code of a language.*name it 'sr-latin'"),
        ("en,../sw", "'../sw'.*no code of a language"),
        ("हिन्दी", "'हिन्दी'.*no code of a language"),
        ("en,O'zbek", "O'zbek.*no code of a language"),
        ("en,geomean", "'geomean'.*another meaning"),
        ("en,all", "'all'.*another meaning"),
        (["en", False], "language false: YAML reads no .*in quotes"),
        (["en", None], "language None: a code is a text"),
        ("all", "the model's distribution, and none is known"),
        ("en,sw,en", "'en' is named twice"),
        ("", "no language"),
        ([], "no lang"),
    ],
)
def test_languages_that_make_no_sense_are_named(asked: str | list[str], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        parse_languages(asked)
    assert "\n" not in str(error.value)


def test_shares_add_up_over_the_languages_asked_for() -> None:
    shares = ROOTS.shares(["en", "sw"])
    assert math.isclose(sum(shares.values()), 1.0)
    assert math.isclose(shares["en"], 484_953_009_124 / (484_953_009_124 + 236_482_543))


def test_a_language_the_distribution_lacks_is_named_with_what_it_has() -> None:
    with pytest.raises(InputError, match=r"'sw'.*it has en, fr"):
        Distribution("mine", "tokens", {"fr": 1.0, "en": 2.0}).shares(["en", "sw"])


@pytest.mark.parametrize("model", ["bigscience/bloom", "bigscience/bloom-7b1", "bigscience/bloomz-7b1-mt"])
def test_bloom_is_known_without_a_network(model: str) -> None:
    assert model_distribution(model) is ROOTS


def test_a_local_bloom_is_known_by_its_configuration(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bloom"}')
    assert model_distribution(str(tmp_path)) is ROOTS


def test_the_file_given_wins_over_the_one_beside_the_model_and_that_over_the_built_in(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bloom"}')
    beside = {"source": "beside", "unit": "tokens", "languages": {"sw": 3, "en": 1}}
    (tmp_path / DISTRIBUTION_FILE).write_text(json.dumps(beside))
    distribution = model_distribution(str(tmp_path))
    assert (distribution.source, distribution.unit) == ("beside", "tokens")
    assert list(distribution.amounts.items()) == [("en", 1.0), ("sw", 3.0)]
    given = tmp_path / "given.json"
    given.write_text(json.dumps({**beside, "source": "given"}))
    assert model_distribution(str(tmp_path), given).source == "given"


@pytest.mark.parametrize("model", ["gpt2", "bigscience/t0", "someone/bloom"])
def test_an_unknown_model_is_told_how_to_give_a_distribution(model: str) -> None:
    with pytest.raises(InputError, match=f"'{model}'.*language_distribution.json"):
        model_distribution(model)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "JSON object"),
        ('{"unit": "x", "languages": {"en": 1}}', "'source'"),
        ('{"source": "x", "unit": 3, "languages": {"en": 1}}', "'unit'"),
        ('{"source": "x", "unit": "x", "languages": {}}', "'languages'"),
        ('{"source": "x", "unit": "x", "languages": {"en": 0}}', "'languages.en'"),
        ('{"source": "x", "unit": "x", "languages": {"en": -1}}', "'languages.en'"),
        ('{"source": "x", "unit": "x", "languages": {"en": NaN}}', "'languages.en'"),
        ('{"source": "x", "unit": "x", "languages": {"en": Infinity}}', "'languages.en'"),
        ('{"source": "x", "unit": "x", "languages": {"en": "1"}}', "'languages.en'"),
        ('{"source": "x", "unit": "x", "languages": {"en": true}}', "'languages.en'"),
        ('{"source": "x", "unit": "x", "languages": {"en": 1, "sr@latin": 1}}', "'sr@latin'.*'sr-latin'"),
        ('{"source": "x", "unit": "x", "languages": {"../../en": 1}}', "'../../en'.*no code of a language"),
        ('{"source": "x", "unit": "x", "languages": {"worst": 1}}', "'worst'.*another meaning"),
        ('{"source": "x", "unit": "x", "languages": {"en": 1' + "0" * 400 + "}}", "'languages.en'"),
    ],
)
def test_a_broken_distribution_names_file_and_field(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "mine.json"
    file.write_text(content)
    with pytest.raises(InputError, match=message) as error:
        model_distribution("gpt2", file)
    assert str(error.value).startswith(str(file)) and "\n" not in str(error.value)


def test_a_missing_distribution_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.json"):
        model_distribution("gpt2", tmp_path / "nowhere.json")


def test_languages_outside_the_table_come_last_by_alphabet() -> None:
    assert table_order(["zz", "tum", "aa", "en"]) == ("en", "tum", "aa", "zz")
