"""Two models on the same tokens: the difference of their nll, and whether it is more than noise."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mbs_ray.errors import InputError
from mbs_ray.evaluation.intervals import Interval, percentile_interval
from mbs_ray.evaluation.metric_names import GEOMEAN
from mbs_ray.evaluation.perplexity import (
    LanguageScore,
    bootstrap_differences,
    bootstrap_mean,
    exponential,
    language_scores,
)
from mbs_ray.languages.facts import table_order

_TOKEN = ("document", "bytes", "segment")
_NO_GROUPS: Mapping[str, Iterable[str]] = MappingProxyType({})


@dataclass(frozen=True)
class Difference:
    """Mean over tokens of nll(B) − nll(A), in nats; ``interval`` is None where there is a single segment."""

    nll: float
    interval: Interval | None

    @property
    def ratio(self) -> float:
        """Perplexity of B over that of A."""
        return exponential(self.nll)

    @property
    def ratio_interval(self) -> Interval | None:
        return None if self.interval is None else Interval(*map(exponential, self.interval))

    @property
    def verdict(self) -> str:
        """Verdict in words: B is worse, better, or within noise; unknown where there is a single segment."""
        if self.interval is None:
            return "one segment: unknown"
        if self.interval.low <= 0 <= self.interval.high:
            return "within noise"
        return "B is worse" if self.nll > 0 else "B is better"


def differences(
    a: Mapping[str, LanguageScore],
    b: Mapping[str, LanguageScore],
    parallel: bool | None = None,
    groups: Mapping[str, Iterable[str]] = _NO_GROUPS,
) -> dict[str, Difference]:
    """B minus A for each language in table order, then for ``geomean``: the mean over languages, which is the
    logarithm of the geometric mean of their ratios; then the same over each of ``groups``.

    Both must have been scored on the same tokens; see :func:`refuse_other_tokens`. ``parallel``: what the set says
    of its documents.
    """
    bootstrapped = bootstrap_differences(b, a)
    found = {}
    for language in table_order(a):
        mean = (b[language].nll - a[language].nll) / a[language].tokens
        found[language] = Difference(mean, percentile_interval(bootstrapped[language]))
    means = {}
    for row, languages in {GEOMEAN: found.keys(), **groups}.items():
        own = {code: a[code] for code in languages}
        mean = math.fsum(found[code].nll for code in own) / len(own)
        means[row] = Difference(mean, percentile_interval(bootstrap_mean(b, own, parallel)))
    return found | means


def compare_scores(
    name: str, a: Path, b: Path, parallel: bool | None = None, groups: Mapping[str, Iterable[str]] = _NO_GROUPS
) -> dict[str, Difference]:
    """:func:`differences` of two files of token scores. Raises :class:`InputError` naming the evaluation set ``name``
    and what differs where the files are not of the same tokens."""
    refuse_other_tokens(name, a, b)
    return differences(language_scores(a), language_scores(b), parallel, groups)


def refuse_other_tokens(name: str, a: Path, b: Path) -> None:
    """Raise :class:`InputError` naming the first thing in which the scored tokens differ."""
    first, second = (pq.read_table(path, columns=["language", *_TOKEN]) for path in (a, b))
    here, there = (table_order(table["language"].unique().to_pylist()) for table in (first, second))
    if here != there:
        raise _other(name, f"the languages are {', '.join(here)} in A, {', '.join(there)} in B")
    for language in here:
        ones, others = (table.filter(pc.equal(table["language"], language)) for table in (first, second))
        if len(ones) != len(others):
            raise _other(name, f"language {language!r} has {len(ones):,} tokens in A, {len(others):,} in B")
        for column in _TOKEN:
            if (token := _first_difference(ones[column], others[column])) is not None:
                values = f"{ones[column][token]} in A, {others[column][token]} in B"
                raise _other(name, f"language {language!r}, scored token {token + 1:,}: {column} {values}")


def _first_difference(ones: pa.ChunkedArray, others: pa.ChunkedArray) -> int | None:
    # The dictionaries of two files may hold the same names in another order.
    same = pc.equal(*(pc.cast(one, pa.string()) if pa.types.is_dictionary(one.type) else one for one in (ones, others)))
    return None if pc.all(same).as_py() else pc.index(same, value=False).as_py()


def _other(name: str, what: str) -> InputError:
    return InputError(
        f"evaluation set {name}: A and B were not scored on the same tokens, so they cannot be compared: {what}; "
        "evaluate both on the same text, with the same tokenizer, segments and sequence_length"
    )
