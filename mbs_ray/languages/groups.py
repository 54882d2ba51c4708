"""Groups of languages with a row of their own in every table: by script, and by share of the training data."""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from types import MappingProxyType

from mbs_ray.languages.codes import GROUPS, HIGH_SHARE, LATIN, LOW_SHARE, NON_LATIN
from mbs_ray.languages.distribution import Distribution
from mbs_ray.languages.facts import LANGUAGES, table_order

#: Share of a model's whole distribution from which on a language's is called high.
HIGH = 0.01
#: Codes of no language in particular (ISO 639), and of no script in particular (ISO 15924).
_NO_LANGUAGE, _NO_SCRIPT = (None, "und", "mul", "mis", "zxx"), ("Zinh", "Zxxx", "Zyyy", "Zzzz")

#: The groups in words, as they end "the geometric mean of …".
GROUP_WORDS: Mapping[str, str] = MappingProxyType(
    {
        LATIN: "languages in Latin script",
        NON_LATIN: "languages in other scripts",
        LOW_SHARE: f"languages with less than {100 * HIGH:g} % of the training data",
        HIGH_SHARE: f"languages with {100 * HIGH:g} % of the training data or more",
    }
)


def language_groups(languages: Iterable[str], distribution: Distribution | None) -> dict[str, tuple[str, ...]]:
    """Sort languages into :data:`GROUPS`, each in table order; a group without a language is left out.

    Shares are those of the whole distribution, in its own unit, so that a language stays in its group whichever others
    a run has. A language whose script is not known is in neither group of scripts, one outside the distribution in
    neither of shares; without a distribution there are none of shares.
    """
    amounts = {} if distribution is None else distribution.amounts
    total = sum(amounts.values())
    groups: dict[str, list[str]] = {group: [] for group in GROUPS}
    for code in table_order(languages):
        if written := script(code):
            groups[LATIN if written == "Latn" else NON_LATIN].append(code)
        if code in amounts:
            groups[HIGH_SHARE if amounts[code] / total >= HIGH else LOW_SHARE].append(code)
    return {group: tuple(own) for group, own in groups.items() if own}


@lru_cache
def script(code: str) -> str | None:
    """Return the ISO 15924 script of a language; None where nobody knows it.

    Outside our table it is the code's own (``sr-Latn``), else the one that the language is most often written in
    (CLDR, as langcodes has it).
    """
    if code in LANGUAGES:
        return LANGUAGES[code].script
    from langcodes import Language
    from langcodes.tag_parser import LanguageTagError

    try:
        language = Language.get(code)
    except LanguageTagError:
        return None
    written = language.script
    if written is not None:
        return written if Language.make(script=written).is_valid() and written not in _NO_SCRIPT else None
    known = language.is_valid() and language.language not in _NO_LANGUAGE
    return language.maximize().script if known else None
