"""Names of the metrics of an evaluation set: ``ppl_udhr/sw`` is the perplexity of Swahili on the set ``udhr``.

A name is a family, what tells the set, and a row: ``ppl_increase`` + ``_udhr`` + ``/`` + ``sw``. The ends of a 95 %
interval have families of their own: ``ppl_increase_ci95_low_udhr/sw``.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from mbs_ray.languages.codes import GROUPS
from mbs_ray.languages.groups import GROUP_WORDS

Family = Literal["ppl", "bpb", "ppl_increase", "scored_tokens", "scored_bytes", "scored_documents", "unknown_share"]
PERPLEXITY: Family = "ppl"
BITS_PER_BYTE: Family = "bpb"
INCREASE: Family = "ppl_increase"
SCORED_TOKENS: Family = "scored_tokens"
SCORED_BYTES: Family = "scored_bytes"
SCORED_DOCUMENTS: Family = "scored_documents"
UNKNOWN_SHARE: Family = "unknown_share"

GEOMEAN, WORST = "geomean", "worst"
#: Rows of an increase that are no languages, in the order of tables: geometric mean of the languages, worst language,
#: geometric means of groups of languages, of which a run has some, all or none.
SUMMARIES = (GEOMEAN, WORST, *GROUPS)


@dataclass(frozen=True)
class MetricNames:
    """Names of the metrics of one evaluation set.

    The first evaluation set of a run has no name in its metrics: ``set_name`` is None, and its perplexity ``ppl/sw``.
    """

    set_name: str | None = None

    @classmethod
    def by_set(cls, sets: Iterable[str]) -> dict[str, "MetricNames"]:
        """Map the evaluation sets of a run, the first one first, to the names of their metrics."""
        return {name: cls(name if position else None) for position, name in enumerate(sets)}

    def metric(self, family: Family, row: str) -> str:
        """Name a metric of this set, of a language or one of :data:`SUMMARIES`."""
        return f"{self._head(family)}/{row}"

    def perplexity(self, language: str) -> str:
        """Name the perplexity of a language."""
        return self.metric(PERPLEXITY, language)

    def bits_per_byte(self, language: str) -> str:
        """Name the bits per byte of a language."""
        return self.metric(BITS_PER_BYTE, language)

    def increase(self, row: str) -> str:
        """Name the perplexity over that of the dense model, of a language or one of :data:`SUMMARIES`."""
        return self.metric(INCREASE, row)

    def interval(self, family: Family, row: str) -> tuple[str, str]:
        """Name both ends, low and high, of the 95 % interval of a metric."""
        return f"{self._head(f'{family}_ci95_low')}/{row}", f"{self._head(f'{family}_ci95_high')}/{row}"

    def rows(self, family: Family, metrics: Mapping[str, float]) -> dict[str, float]:
        """Pick the values of a family of this set, by row, from all metrics of a run."""
        beginning = self.metric(family, "")
        return {name.removeprefix(beginning): value for name, value in metrics.items() if name.startswith(beginning)}

    def _head(self, family: str) -> str:
        return family if self.set_name is None else f"{family}_{self.set_name}"


def group_sentence(increases: Mapping[str, float]) -> list[str]:
    """Say the means of groups of languages in a sentence; none where there are no groups."""
    said = [f"{increases[group]:.3f} of {words}" for group, words in GROUP_WORDS.items() if group in increases]
    return [f"Geometric means: {', '.join(said)}."] if said else []
