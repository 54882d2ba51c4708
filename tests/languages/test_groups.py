"""Groups of languages: which script, how much of the training data; none where nobody knows."""

import pytest

from mbs_ray.errors import InputError
from mbs_ray.languages.codes import GROUPS, check_code
from mbs_ray.languages.distribution import ROOTS, Distribution
from mbs_ray.languages.facts import LANGUAGES, PAPER_LANGUAGES
from mbs_ray.languages.groups import GROUP_WORDS, language_groups, script


def test_the_paper_s_languages_of_bloom_fall_into_all_four_groups() -> None:
    groups = language_groups(reversed(PAPER_LANGUAGES), ROOTS)
    assert tuple(groups) == GROUPS == tuple(GROUP_WORDS)
    assert groups["latin"] == ("en", "fr", "es", "pt", "vi", "id", "sw", "yo", "ig")
    assert groups["high-share"] == ("en", "zh-Hans", "fr", "es", "pt", "ar", "vi", "hi", "id", "bn")
    for one, other in (("latin", "non-latin"), ("low-share", "high-share")):
        assert sorted(groups[one] + groups[other]) == sorted(PAPER_LANGUAGES)


def test_the_share_is_that_of_the_whole_distribution_and_one_percent_is_high() -> None:
    distribution = Distribution("made up", "tokens", {"en": 980.0, "sw": 10.0, "yo": 9.0, "ig": 1.0})
    groups = language_groups(["yo", "ig", "sw"], distribution)
    assert (groups["high-share"], groups["low-share"]) == (("sw",), ("yo", "ig"))


def test_a_group_without_a_language_is_left_out_and_so_is_what_nobody_knows() -> None:
    assert language_groups(["en", "sw"], None) == {"latin": ("en", "sw")}
    assert language_groups([], ROOTS) == {}
    distribution = Distribution("made up", "tokens", {"en": 1.0})
    assert language_groups(["en", "klingon", "und"], distribution) == {"latin": ("en",), "high-share": ("en",)}


def test_the_script_is_the_table_s_the_code_s_own_or_the_likely_one() -> None:
    assert all(script(code) == language.script for code, language in LANGUAGES.items())
    scripts = {"de": "Latn", "ru": "Cyrl", "sr": "Cyrl", "sr-Latn": "Latn", "eng_Latn": "Latn", "jpn_Jpan": "Jpan"}
    assert {code: script(code) for code in scripts} == scripts
    for unknown in ("xx", "klingon", "und", "mul", "zxx", "de-Zyyy", "de_Xxxx"):
        assert script(unknown) is None


@pytest.mark.parametrize("group", GROUPS)
def test_no_language_can_have_the_name_of_a_group(group: str) -> None:
    with pytest.raises(InputError, match="another meaning here"):
        check_code(group)
