"""Samplings: from a model's distribution and a number of segments to an allocation, language by language.

A sampling is a frozen dataclass that is its own configuration; `{name: temperature, alpha: 0.3}` builds it
through `SAMPLINGS`. Every allocation is in table order and adds up exactly to the segments asked for.
"""

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import ClassVar, Protocol

from mbs_ray.errors import InputError
from mbs_ray.languages.allocation import by_weight, normalised, require_distribution, require_enough
from mbs_ray.languages.codes import check_code
from mbs_ray.languages.distribution import BYTES, TOKENS, Distribution
from mbs_ray.languages.facts import table_order

LARGEST_ALPHA = 100.0

#: What an adaptive sampling may minimise; see :mod:`mbs_ray.languages.search`.
OBJECTIVES = ("mean", "worst", "regret")


class Sampling(Protocol):
    """The protocol of all samplings. `label` names the sampling in run names."""

    name: ClassVar[str]

    @property
    def label(self) -> str: ...

    def allocate(self, distribution: Distribution | None, languages: Iterable[str], segments: int) -> dict[str, int]:
        """Allocate segments to languages, in table order, adding up to `segments`. InputError where it cannot."""
        ...

    def weights(self, distribution: Distribution | None, languages: Iterable[str]) -> dict[str, Fraction]:
        """Compute the shares that `allocate` rounds to whole segments, in table order, above 0, adding up to 1."""
        ...


@dataclass(frozen=True)
class Monolingual:
    """All segments in one language, whatever the languages asked for: what everybody does, with English.

    language: code of that language.
    """

    name: ClassVar[str] = "monolingual"
    language: str = "en"

    def __post_init__(self) -> None:
        check_code(self.language, "sampling monolingual")

    @property
    def label(self) -> str:
        return f"{self.name}-{self.language}"

    def allocate(self, distribution: Distribution | None, languages: Iterable[str], segments: int) -> dict[str, int]:
        (language,) = self.weights(distribution, languages)
        require_enough([language], segments)
        return {language: segments}

    def weights(self, distribution: Distribution | None, languages: Iterable[str]) -> dict[str, Fraction]:
        return {self.language: Fraction(1)}


@dataclass(frozen=True)
class Equal:
    """The same number of segments for every language; the remainder is given one each, in table order."""

    name: ClassVar[str] = "equal"

    @property
    def label(self) -> str:
        return self.name

    def allocate(self, distribution: Distribution | None, languages: Iterable[str], segments: int) -> dict[str, int]:
        return by_weight(dict.fromkeys(languages, Fraction(1)), segments)

    def weights(self, distribution: Distribution | None, languages: Iterable[str]) -> dict[str, Fraction]:
        return normalised(dict.fromkeys(languages, Fraction(1)))


@dataclass(frozen=True)
class Proportional:
    """In proportion to the model's training data: Multilingual Brain Surgeon, arXiv 2404.04748.

    unit: bytes, as in the paper, or tokens, by which training weighed languages: bytes ÷ bytes per token of the text.
    """

    name: ClassVar[str] = "proportional"
    unit: str = BYTES

    def __post_init__(self) -> None:
        if self.unit not in (BYTES, TOKENS):
            raise InputError(f"sampling proportional: unknown unit {self.unit!r}: there are {BYTES}, {TOKENS}")

    @property
    def label(self) -> str:
        return self.name if self.unit == BYTES else f"{self.name}-{self.unit}"

    def allocate(self, distribution: Distribution | None, languages: Iterable[str], segments: int) -> dict[str, int]:
        return by_weight(self._amounts(distribution, languages), segments)

    def weights(self, distribution: Distribution | None, languages: Iterable[str]) -> dict[str, Fraction]:
        return normalised(self._amounts(distribution, languages))

    def _amounts(self, distribution: Distribution | None, languages: Iterable[str]) -> dict[str, Fraction]:
        amounts = require_distribution(self.name, distribution).amounts_of(languages)
        return {code: Fraction(amount) for code, amount in amounts.items()}


@dataclass(frozen=True)
class Temperature:
    """In proportion to share ** alpha: 1 is proportional, 0 equal, between them small languages get more.

    alpha: the power, from 0 to 100.
    """

    name: ClassVar[str] = "temperature"
    alpha: float

    def __post_init__(self) -> None:
        number = isinstance(self.alpha, int | float) and not isinstance(self.alpha, bool)
        if not number or not 0 <= self.alpha <= LARGEST_ALPHA:
            raise InputError(f"sampling temperature: alpha must be from 0 to {LARGEST_ALPHA:g}, not {self.alpha!r}")
        object.__setattr__(self, "alpha", float(self.alpha))

    @property
    def label(self) -> str:
        return f"{self.name}-{self.alpha:g}"

    def allocate(self, distribution: Distribution | None, languages: Iterable[str], segments: int) -> dict[str, int]:
        return by_weight(self._powers(distribution, languages), segments)

    def weights(self, distribution: Distribution | None, languages: Iterable[str]) -> dict[str, Fraction]:
        return normalised(self._powers(distribution, languages))

    def _powers(self, distribution: Distribution | None, languages: Iterable[str]) -> dict[str, Fraction]:
        amounts = require_distribution(self.name, distribution).amounts_of(languages)
        # A power of two scales without rounding: alpha = 1 is exactly `Proportional`, and nothing overflows.
        exponent = math.frexp(max(amounts.values(), default=1.0))[1]
        return {code: Fraction(math.ldexp(amount, -exponent) ** self.alpha) for code, amount in amounts.items()}


@dataclass(frozen=True)
class Counts:
    """Segments given language by language; their sum must be the segments asked for.

    counts: segments by language code.
    """

    name: ClassVar[str] = "counts"
    counts: Mapping[str, int] = field(hash=False)

    def __post_init__(self) -> None:
        if not isinstance(self.counts, Mapping) or not self.counts:
            raise InputError("sampling counts: counts must map at least one language to its segments")
        for code, count in self.counts.items():
            check_code(code, "sampling counts")
            if not isinstance(count, int) or isinstance(count, bool) or count < 1:
                raise InputError(f"sampling counts: counts.{code} must be a positive integer, not {count!r}")
        object.__setattr__(self, "counts", {code: self.counts[code] for code in table_order(self.counts)})

    @property
    def label(self) -> str:
        listed = "-".join(f"{code}{count}" for code, count in self.counts.items())
        return f"{self.name}-{listed if len(listed) <= 40 else hashlib.sha256(listed.encode()).hexdigest()[:8]}"

    def allocate(self, distribution: Distribution | None, languages: Iterable[str], segments: int) -> dict[str, int]:
        total = sum(self.counts.values())
        if total != segments:
            raise InputError(f"sampling counts: the counts add up to {total} segments, not {segments}")
        return dict(self.counts)

    def weights(self, distribution: Distribution | None, languages: Iterable[str]) -> dict[str, Fraction]:
        return normalised({code: Fraction(count) for code, count in self.counts.items()})


@dataclass(frozen=True)
class Adaptive:
    """Weights that are found by trial before the run: see :mod:`mbs_ray.languages.search`. For dense statistics alone.

    objective: what is minimised of the languages' predicted increases: their mean, the worst, or the largest regret:
    how much more a language loses than under the better of equal and proportional sampling.
    trials: mixtures that are tried at most. sensitivity_segments: segments per language for gradients.
    """

    name: ClassVar[str] = "adaptive"
    objective: str = "regret"
    trials: int = 8
    sensitivity_segments: int = 4

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise InputError(
                f"sampling adaptive: unknown objective {self.objective!r}: there are {', '.join(OBJECTIVES)}"
            )
        for option, least in (("trials", 3), ("sensitivity_segments", 1)):
            value = getattr(self, option)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise InputError(
                    f"sampling adaptive: {option} must be a whole number of at least {least}, not {value!r}"
                )

    @property
    def label(self) -> str:
        # Without sensitivity_segments, as directories of earlier sweeps are named; a sweep tells those apart.
        return f"{self.name}-{self.objective}{'' if self.trials == 8 else f'-{self.trials}'}"

    def allocate(self, distribution: Distribution | None, languages: Iterable[str], segments: int) -> dict[str, int]:
        raise InputError(
            "sampling adaptive finds weights of languages, not numbers of segments; give the run statistics: dense, "
            "with weights: shares"
        )

    def weights(self, distribution: Distribution | None, languages: Iterable[str]) -> dict[str, Fraction]:
        """Return equal weights, as long as none have been found."""
        return Equal().weights(distribution, languages)
