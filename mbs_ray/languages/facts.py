"""The 46 natural languages of ROOTS, and how much of each a model was trained on.

Facts: `languages.csv` beside this file (UTF-8 bytes in ROOTS: BLOOM, arXiv 2211.05100; segments of the paper:
Multilingual Brain Surgeon, arXiv 2404.04748). File order is the *table order* used everywhere.
"""

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from types import MappingProxyType


@dataclass(frozen=True)
class Language:
    """One natural language of ROOTS.

    `roots_bytes` are UTF-8 bytes; `cc100` and `xlsum` its names in those corpora (None where they lack it);
    `script` is ISO 15924; `paper_segments` its part of the paper's 256 segments (None outside its 20).
    """

    code: str
    name: str
    iso639_3: str
    roots_code: str
    roots_bytes: int
    cc100: str | None
    xlsum: str | None
    script: str
    family: str
    paper_segments: int | None


def _read_table() -> Mapping[str, Language]:
    rows = csv.DictReader((files("mbs_ray.languages") / "languages.csv").read_text(encoding="utf-8").splitlines())
    languages = (
        Language(
            code=row["code"],
            name=row["name"],
            iso639_3=row["iso639_3"],
            roots_code=row["roots_code"],
            roots_bytes=int(row["roots_bytes"]),
            cc100=row["cc100"] or None,
            xlsum=row["xlsum"] or None,
            script=row["script"],
            family=row["family"],
            paper_segments=int(row["paper_segments"]) if row["paper_segments"] else None,
        )
        for row in rows
    )
    return MappingProxyType({language.code: language for language in languages})


LANGUAGES: Mapping[str, Language] = _read_table()
PAPER_LANGUAGES: tuple[str, ...] = tuple(
    code for code, language in LANGUAGES.items() if language.paper_segments is not None
)
_POSITION = MappingProxyType({code: position for position, code in enumerate(LANGUAGES)})


def table_order(codes: Iterable[str]) -> tuple[str, ...]:
    """Sort codes in table order; codes outside the table follow, in alphabetical order."""
    return tuple(sorted(codes, key=lambda code: (_POSITION.get(code, len(_POSITION)), code)))
