"""Codes of languages: which are well-formed, and what a library that is kept up knows of those outside our table."""

import re
from functools import lru_cache

from mbs_ray.errors import InputError
from mbs_ray.languages.facts import LANGUAGES

#: Rows of tables that sum up a group of languages (``groups.py``).
GROUPS = LATIN, NON_LATIN, LOW_SHARE, HIGH_SHARE = "latin", "non-latin", "low-share", "high-share"
#: Words that stand where a code may stand: several languages, or the last rows of tables.
RESERVED = ("paper", "all", "geomean", "worst", "mean", *GROUPS)
#: A language, then script, region and whatever else: RFC 5646 (BCP 47), with FLORES' underscore as well.
_CODE = re.compile(r"[A-Za-z]{2,8}([-_][A-Za-z0-9]{1,8})*")
#: Languages that our table names by their script.
_SEVERAL_SCRIPTS = ("zh",)
_LONGEST = 35  # the least that RFC 5646, section 4.4.1, asks software to have room for


def check_code(code: object, where: str = "") -> str:
    """Return the code, if it is a well-formed one: a file, a folder and a metric can then be named after it.

    Raises :class:`InputError` that begins with ``where``, and says what YAML does to Norwegian's ``no``.
    """
    beginning = f"{where}: language" if where else "language"
    if isinstance(code, bool):
        raise InputError(
            f"{beginning} {str(code).lower()}: YAML reads no and off as false, yes and on as true; "
            "write the code in quotes: 'no'"
        )
    if not isinstance(code, str):
        raise InputError(f"{beginning} {code!r}: a code is a text; write it in quotes")
    if not is_well_formed(code):
        raise InputError(
            f"{beginning} {code!r}: no code of a language; codes have groups of up to eight letters or digits, as "
            f"sw, pt-BR, sr-Latn (BCP 47) or eng_Latn{_suggestion(code)}"
        )
    if code in RESERVED:
        raise InputError(f"{beginning} {code!r}: the word has another meaning here ({', '.join(RESERVED)})")
    return code


def is_well_formed(code: str) -> bool:
    """Tell whether a text has the form of a code."""
    return len(code) <= _LONGEST and _CODE.fullmatch(code) is not None


@lru_cache
def language_name(code: str) -> str:
    """Return the English name of a language: "Swahili", "Serbian (Latin)"; empty where nobody knows it."""
    if code in LANGUAGES:
        return LANGUAGES[code].name
    from langcodes import Language
    from langcodes.tag_parser import LanguageTagError

    try:
        name = Language.get(code).display_name()
    except LanguageTagError:
        return ""
    return "" if name.startswith("Unknown language") else name


@lru_cache
def shortest_code(code: str) -> str:
    """Return the code as our table or BCP 47 writes it, without a script that goes without saying.

    ``eng_Latn`` → ``en``, ``deu-Latn`` → ``de``, ``zho_Hans`` → ``zh-Hans``; one that is not registered stays.
    """
    from langcodes import Language
    from langcodes.tag_parser import LanguageTagError

    try:
        language = Language.get(code)
    except LanguageTagError:
        return code
    if not language.is_valid():
        return code
    if language.language not in LANGUAGES:
        # FLORES names the largest language of a group: Nepali is npi, Odia ory, Arabic arb.
        language = language.prefer_macrolanguage()
    script, tag = language.script, str(language)
    if script is None or language.language in _SEVERAL_SCRIPTS:
        return tag
    likely = Language.make(language=language.language, territory=language.territory).maximize().script
    # Korean's likely script is that of Hangul with Hanja, of which Hangul is a part.
    goes_without_saying = script == likely or (script, likely) == ("Hang", "Kore")
    return tag.replace(f"-{script}", "", 1) if goes_without_saying else tag


@lru_cache
def is_registered(code: str) -> bool:
    """Tell whether a code of two letters is a language's (``fr``), and not just two letters (``qa``)."""
    from langcodes import Language

    return Language.get(code).is_valid()


@lru_cache
def language_of_name(name: str) -> str | None:
    """Return the code of an English name, ``basque`` → ``eu``; None where it is none."""
    for one in LANGUAGES.values():
        if one.name.lower() == name.lower():
            return one.code
    from langcodes import find

    try:
        return shortest_code(str(find(name, "en")))
    except LookupError:
        return None


@lru_cache
def base_language(code: str) -> str:
    """Return the language alone, as the hub wants it in a model card: ``zh-Hans`` → ``zh``, ``eng_Latn`` → ``en``."""
    return re.split("[-_]", shortest_code(code))[0]


def _suggestion(code: str) -> str:
    """``; name it 'sr-latin'`` for ``sr@latin``."""
    mended = re.sub(r"[^A-Za-z0-9]+", "-", code)
    return f"; name it {mended!r}" if is_well_formed(mended) and mended not in RESERVED else ""
