"""Documents that correspond across languages, as translations do, resampled together.

What makes a passage hard makes its translations hard: on parallel text the errors of the languages go together, and an
interval of their mean that draws each language for itself is too narrow, the more so the more languages there are.
There whole documents are drawn, the same of all languages at once (a bootstrap of clusters: Field & Welsh, Journal of
the Royal Statistical Society B 69, 2007). Where documents of one number have nothing to do with each other, this is
right as well, only somewhat less precise.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mbs_ray.evaluation.intervals import RESAMPLES, SEED
from mbs_ray.text.unit_draw import generator

#: Documents correspond where a document of one language was, on average, scored in this part of the others,
LEAST_SHARED = 0.1
#: and each language has so many; fewer say less than the segments do.
FEWEST_DOCUMENTS = 10
_INDICES_AT_ONCE = 2**21


@dataclass(frozen=True, eq=False)
class DocumentSums:
    """Sums of one language by document: its label, ``nll`` of its scored tokens in nats float64, and how many they are
    int64, at least 1; all [documents], in the order of the labels.
    """

    labels: tuple[str, ...]
    nll: npt.NDArray[np.float64]
    tokens: npt.NDArray[np.int64]

    def less(self, other: "DocumentSums") -> "DocumentSums":
        """Return the difference of the nll, of the same documents."""
        return DocumentSums(self.labels, self.nll - other.nll, self.tokens)


def corresponding(sums: Mapping[str, DocumentSums], parallel: bool | None = None) -> dict[str, list[str]] | None:
    """Return the names of each language's documents, the same for those that correspond; None where none do.

    ``parallel`` says whether they do: translations, in one order in every language. Where it says nothing, they do
    where most languages have documents of the same number in files of the same name but for the language.
    """
    if parallel is False or len(sums) < 2:
        return None
    names = {language: document_names(language, one.labels, parallel is True) for language, one in sums.items()}
    if parallel:
        return names if min(map(len, names.values())) > 1 else None
    languages_with = Counter(name for own in names.values() for name in own)
    shared = sum(count * (count - 1) for count in languages_with.values())
    enough = shared >= LEAST_SHARED * (len(names) - 1) * sum(languages_with.values())
    return names if enough and min(map(len, names.values())) >= FEWEST_DOCUMENTS else None


def document_names(language: str, labels: Sequence[str], in_order: bool) -> list[str]:
    """Labels without what tells the language: ``sw.jsonl#3`` and ``en.parquet#3`` are both ``#3``.

    Those of plain text tell the place in bytes (``sw.txt@120``), which is another in every language: they are numbered
    where the documents are said to stand ``in_order``, and correspond to none where not.
    """
    if in_order and any("@" in label for label in labels):
        order = sorted(range(len(labels)), key=lambda at: _place(labels[at]))
        rank = {at: number for number, at in enumerate(order)}
        return [f"#{rank[at]}" for at in range(len(labels))]
    return [label if "@" in label else _without_language(language, label) for label in labels]


def bootstrap_together(sums: Mapping[str, DocumentSums], names: Mapping[str, Sequence[str]]) -> npt.NDArray[np.float64]:
    """Mean over the languages of Σ nll / Σ tokens in each resample of the documents of all, float64 [≤ RESAMPLES].

    Every resample draws with replacement as many names as there are, and takes of each language the documents that have
    them; the few in which a language has none are left out.
    """
    place = {name: at for at, name in enumerate(sorted({name for own in names.values() for name in own}))}
    own = {language: np.array([place[name] for name in names[language]]) for language in sums}
    random = generator(SEED, "documents", "bootstrap")
    parts = []
    at_once = max(1, _INDICES_AT_ONCE // len(place))
    for start in range(0, RESAMPLES, at_once):
        rows = min(at_once, RESAMPLES - start)
        drawn = random.integers(len(place), size=(rows, len(place))) + len(place) * np.arange(rows)[:, None]
        times = np.bincount(drawn.ravel(), minlength=rows * len(place)).reshape(rows, -1)
        tokens = np.stack([(times[:, own[code]] * one.tokens).sum(axis=1) for code, one in sums.items()])
        nll = np.stack([(times[:, own[code]] * one.nll).sum(axis=1) for code, one in sums.items()])
        whole = (tokens > 0).all(axis=0)
        parts.append((nll[:, whole] / tokens[:, whole]).mean(axis=0))
    return np.concatenate(parts)


def _place(label: str) -> tuple[str, int]:
    file, _, number = label.replace("@", "#").rpartition("#")
    return file, int(number)


def _without_language(language: str, label: str) -> str:
    """Of a file in a folder named after the language, or of a stream whose configuration is."""
    if label.startswith((f"{language}.", f"{language}/")):
        label = label.removeprefix(language)
    elif ":" in label:
        label = label.rpartition(":")[2]
    return re.sub(r"\.[A-Za-z.]+#", "#", label)
