"""Languages of a run, how much calibration text each gets, and what groups they form."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import NamedTuple

from mbs_ray.errors import InputError
from mbs_ray.languages.distribution import Distribution, parse_languages
from mbs_ray.languages.groups import language_groups
from mbs_ray.languages.sampling_registry import counts_tokens, distribution_for
from mbs_ray.languages.samplings import Adaptive
from mbs_ray.methods import Statistic
from mbs_ray.run.modes import DenseStatistics
from mbs_ray.run.spec import RunSpec


class SettledLanguages(NamedTuple):
    """Languages of a run, segments of each, their groups, and with dense statistics their weights."""

    languages: tuple[str, ...]
    allocation: dict[str, int]
    groups: dict[str, tuple[str, ...]]
    weights: dict[str, Fraction] | None


def settle_languages(
    spec: RunSpec, in_tokens: Callable[[RunSpec, Distribution, Sequence[str]], Distribution]
) -> SettledLanguages:
    """Settle what a run asks of its languages; ``in_tokens`` turns a distribution's amounts into tokens.

    Raises :class:`InputError` where that cannot work.
    """
    distribution = distribution_for(spec.sampling, spec.model, spec.distribution, spec.revision)
    languages = parse_languages(spec.languages, distribution)
    groups = language_groups(languages, distribution)
    if distribution is not None and counts_tokens(spec.sampling, distribution):
        distribution = in_tokens(spec, distribution, languages)
    dense = spec.statistics
    if dense is None:
        return SettledLanguages(languages, spec.sampling.allocate(distribution, languages, spec.segments), groups, None)
    if isinstance(spec.sampling, Adaptive):
        _check_adaptive(spec, dense)
    if spec.per_language and dense.stored == "samplings":
        raise InputError(
            "statistics.stored: a sum per sampling keeps no moments of a language, by which per_language measures; "
            "take stored: languages"
        )
    if dense.weights == "shares":
        weights = spec.sampling.weights(distribution, languages)
    else:
        allocation = spec.sampling.allocate(distribution, languages, spec.segments)
        weights = {code: Fraction(count, spec.segments) for code, count in allocation.items()}
    return SettledLanguages(languages, dict.fromkeys(weights, dense.segments_per_language), groups, weights)


def _check_adaptive(spec: RunSpec, dense: DenseStatistics) -> None:
    if spec.method.statistic is Statistic.NONE:
        raise InputError(f"sampling adaptive: method {spec.method.name} sees no text, so that no mixture of it matters")
    if dense.stored == "samplings":
        raise InputError(
            "statistics.stored: a sum per sampling keeps no moments of a language, of which adaptive makes its "
            "mixtures; take stored: languages"
        )
