"""Samplings: from a model's distribution and a number of segments to an allocation, language by language.

A sampling is a frozen dataclass that is its own configuration; `{name: temperature, alpha: 0.3}` builds it
through `SAMPLINGS`. Every allocation is in table order and adds up exactly to the segments asked for.
"""

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Protocol

from mbs_ray.errors import InputError
from mbs_ray.languages import LANGUAGES, Distribution, UnknownDistributionError, model_distribution, table_order

LARGEST_ALPHA = 100.0
#: What an adaptive sampling may minimise; see :mod:`mbs_ray.adaptive`.
OBJECTIVES = ("mean", "worst", "regret")


class Sampling(Protocol):
    """What all samplings share. `label` names the sampling in run names."""

    name: ClassVar[str]

    @property
    def label(self) -> str: ...

    def allocate(self, distribution: Distribution | None, languages: Iterable[str], segments: int) -> dict[str, int]:
        """Segments of each language, in table order, adding up to `segments`. InputError where it cannot."""
        ...

    def weights(self, distribution: Distribution | None, languages: Iterable[str]) -> dict[str, Fraction]:
        """The shares that `allocate` rounds to whole segments, in table order, above 0, adding up to 1."""
        ...


@dataclass(frozen=True)
class Monolingual:
    """All segments in one language, whatever the languages asked for: what everybody does, with English."""

    name: ClassVar[str] = "monolingual"
    language: str = "en"

    def __post_init__(self) -> None:
        if not isinstance(self.language, str) or not self.language:
            raise InputError(f"sampling monolingual: language must be a language code, not {self.language!r}")

    @property
    def label(self) -> str:
        return f"{self.name}-{self.language}"

    def allocate(self, distribution: Distribution | None, languages: Iterable[str], segments: int) -> dict[str, int]:
        (language,) = self.weights(distribution, languages)
        _require_enough([language], segments)
        return {language: segments}

    def weights(self, distribution: Distribution | None, languages: Iterable[str]) -> dict[str, Fraction]:
        _require_known([self.language], distribution, languages)
        return {self.language: Fraction(1)}


@dataclass(frozen=True)
class Equal:
    """The same number of segments for every language; what is left over goes one each, in table order."""

    name: ClassVar[str] = "equal"

    @property
    def label(self) -> str:
        return self.name

    def allocate(self, distribution: Distribution | None, languages: Iterable[str], segments: int) -> dict[str, int]:
        return _by_weight(dict.fromkeys(languages, Fraction(1)), segments)

    def weights(self, distribution: Distribution | None, languages: Iterable[str]) -> dict[str, Fraction]:
        return _normalised(dict.fromkeys(languages, Fraction(1)))


@dataclass(frozen=True)
class Proportional:
    """In proportion to the model's training data: Multilingual Brain Surgeon, arXiv 2404.04748."""

    name: ClassVar[str] = "proportional"

    @property
    def label(self) -> str:
        return self.name

    def allocate(self, distribution: Distribution | None, languages: Iterable[str], segments: int) -> dict[str, int]:
        return _by_weight(self._amounts(distribution, languages), segments)

    def weights(self, distribution: Distribution | None, languages: Iterable[str]) -> dict[str, Fraction]:
        return _normalised(self._amounts(distribution, languages))

    def _amounts(self, distribution: Distribution | None, languages: Iterable[str]) -> dict[str, Fraction]:
        amounts = _require_distribution(self, distribution).amounts_of(languages)
        return {code: Fraction(amount) for code, amount in amounts.items()}


@dataclass(frozen=True)
class Temperature:
    """In proportion to share ** alpha: 1 is proportional, 0 equal, between them small languages get more."""

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
        return _by_weight(self._powers(distribution, languages), segments)

    def weights(self, distribution: Distribution | None, languages: Iterable[str]) -> dict[str, Fraction]:
        return _normalised(self._powers(distribution, languages))

    def _powers(self, distribution: Distribution | None, languages: Iterable[str]) -> dict[str, Fraction]:
        amounts = _require_distribution(self, distribution).amounts_of(languages)
        # A power of two scales without rounding: alpha = 1 is exactly `Proportional`, and nothing overflows.
        exponent = math.frexp(max(amounts.values(), default=1.0))[1]
        return {code: Fraction(math.ldexp(amount, -exponent) ** self.alpha) for code, amount in amounts.items()}


@dataclass(frozen=True)
class Counts:
    """Segments given language by language; their sum must be the segments asked for."""

    name: ClassVar[str] = "counts"
    counts: Mapping[str, int] = field(hash=False)

    def __post_init__(self) -> None:
        if not isinstance(self.counts, Mapping) or not self.counts:
            raise InputError("sampling counts: counts must map at least one language to its segments")
        for code, count in self.counts.items():
            if not isinstance(count, int) or isinstance(count, bool) or count < 1:
                raise InputError(f"sampling counts: counts.{code} must be a positive integer, not {count!r}")
        object.__setattr__(self, "counts", {code: self.counts[code] for code in table_order(self.counts)})

    @property
    def label(self) -> str:
        listed = "-".join(f"{code}{count}" for code, count in self.counts.items())
        return f"{self.name}-{listed if len(listed) <= 40 else hashlib.sha256(listed.encode()).hexdigest()[:8]}"

    def allocate(self, distribution: Distribution | None, languages: Iterable[str], segments: int) -> dict[str, int]:
        _require_known(self.counts, distribution, languages)
        total = sum(self.counts.values())
        if total != segments:
            raise InputError(f"sampling counts: the counts add up to {total} segments, not {segments}")
        return dict(self.counts)

    def weights(self, distribution: Distribution | None, languages: Iterable[str]) -> dict[str, Fraction]:
        _require_known(self.counts, distribution, languages)
        return _normalised({code: Fraction(count) for code, count in self.counts.items()})


@dataclass(frozen=True)
class Adaptive:
    """Weights that are found by trial before the run: see :mod:`mbs_ray.adaptive`. For dense statistics alone.

    objective: what of the languages' predicted increases is made small, their mean, the worst, or the largest regret:
    how much more a language loses than under the better of equal and proportional sampling.
    trials: mixtures that are tried at most. sensitivity_segments: of each language, from which gradients are taken.
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
        return f"{self.name}-{self.objective}{'' if self.trials == 8 else f'-{self.trials}'}"

    def allocate(self, distribution: Distribution | None, languages: Iterable[str], segments: int) -> dict[str, int]:
        raise InputError(
            "sampling adaptive finds weights of languages, not numbers of segments; give the run statistics: dense, "
            "with weights: shares"
        )

    def weights(self, distribution: Distribution | None, languages: Iterable[str]) -> dict[str, Fraction]:
        """Equal ones, as long as none have been found."""
        return Equal().weights(distribution, languages)


SAMPLINGS: Mapping[str, type[Any]] = MappingProxyType(
    {sampling.name: sampling for sampling in (Monolingual, Equal, Proportional, Temperature, Counts, Adaptive)}
)


def distribution_for(sampling: Sampling, model: str, file: Path | None) -> Distribution | None:
    """The distribution of a model; None where none is known and the sampling asks for none.

    Raises :class:`InputError` where the sampling asks for one, and for a distribution that is there but broken.
    """
    try:
        return model_distribution(model, file)
    except UnknownDistributionError as error:
        asks = isinstance(sampling, Proportional | Temperature)
        if not asks and not (isinstance(sampling, Adaptive) and sampling.objective == "regret"):
            return None
        raise InputError(
            f"sampling {sampling.name}: {error}; equal, monolingual, counts and other objectives of adaptive need none"
        ) from error


def build_sampling(spec: str | Mapping[str, Any]) -> Sampling:
    """A sampling from its name, or from a mapping with `name` and its fields; InputError for any other."""
    if not isinstance(spec, str | Mapping):
        raise InputError(f"sampling: expected a name or a mapping with a name, not {spec!r}")
    options: dict[str, Any] = {"name": spec} if isinstance(spec, str) else dict(spec)
    name = options.pop("name", None)
    if not isinstance(name, str) or name not in SAMPLINGS:
        raise InputError(f"unknown sampling {name!r}: there are {', '.join(SAMPLINGS)}")
    known = [option.name for option in fields(SAMPLINGS[name])]
    for option in options:
        if option not in known:
            raise InputError(f"sampling {name}: unknown field {option!r}; its fields: {', '.join(known) or 'none'}")
    try:
        return SAMPLINGS[name](**options)
    except TypeError:
        missing = [option for option in known if option not in options]
        raise InputError(f"sampling {name}: field {missing[0]!r} is missing") from None


def sampling_spec(sampling: Sampling) -> dict[str, Any]:
    """The mapping `build_sampling` makes this sampling from; plain YAML and JSON values."""
    return {"name": sampling.name, **asdict(sampling)}  # type: ignore[call-overload]


def _require_known(codes: Iterable[str], distribution: Distribution | None, languages: Iterable[str]) -> None:
    known = {*LANGUAGES, *languages, *(distribution.amounts if distribution else ())}
    for code in codes:
        if code not in known:
            raise InputError(f"unknown language {code!r}: there are {', '.join(table_order(known))}")


def _require_distribution(sampling: Sampling, distribution: Distribution | None) -> Distribution:
    if distribution is None:
        raise InputError(f"sampling {sampling.name} needs the model's language distribution")
    return distribution


def _require_enough(languages: Iterable[str], segments: int) -> None:
    count = len(list(languages))
    if count == 0:
        raise InputError("no language to allocate segments to")
    if segments < count:
        raise InputError(f"{segments} segments are fewer than the {count} languages: ask for at least {count}")


def _normalised(weights: Mapping[str, Fraction]) -> dict[str, Fraction]:
    """Shares of the weights; a weight that vanished (a share to a large power) is left out."""
    languages = [code for code in table_order(weights) if weights[code] > 0]
    if not languages:
        raise InputError("no language to weigh")
    total = sum(weights.values())
    return {code: weights[code] / total for code in languages}


def _by_weight(weights: Mapping[str, Fraction], segments: int) -> dict[str, int]:
    """The paper's rule, completed: floors of the exact quotas, at least 1 each, then mended to add up.

    An excess is taken one at a time from the currently largest, a shortage given by the largest remainder of
    quota over allocation; ties go in table order. arXiv 2404.04748 gives the floors and the minimum.
    """
    languages = table_order(weights)
    _require_enough(languages, segments)
    total = sum(weights.values())
    quotas = {code: segments * weights[code] / total for code in languages}
    allocation = {code: max(1, math.floor(quota)) for code, quota in quotas.items()}
    for _ in range(sum(allocation.values()) - segments):
        allocation[max(languages, key=allocation.__getitem__)] -= 1
    by_remainder = sorted(languages, key=lambda code: allocation[code] - quotas[code])
    for code in by_remainder[: max(0, segments - sum(allocation.values()))]:
        allocation[code] += 1
    return allocation
