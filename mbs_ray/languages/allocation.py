"""From weights of languages to whole segments that add up exactly."""

import math
from collections.abc import Iterable, Mapping
from fractions import Fraction

from mbs_ray.errors import InputError
from mbs_ray.languages.distribution import Distribution
from mbs_ray.languages.facts import table_order


def require_distribution(sampling: str, distribution: Distribution | None) -> Distribution:
    """Return the distribution; raise :class:`InputError` naming the sampling where there is none."""
    if distribution is None:
        raise InputError(f"sampling {sampling} needs the model's language distribution")
    return distribution


def require_enough(languages: Iterable[str], segments: int) -> None:
    """Raise :class:`InputError` unless there is a language, and at least one segment for each."""
    count = len(list(languages))
    if count == 0:
        raise InputError("no language to allocate segments to")
    if segments < count:
        raise InputError(f"{segments} segments are fewer than the {count} languages: ask for at least {count}")


def normalised(weights: Mapping[str, Fraction]) -> dict[str, Fraction]:
    """Normalise weights to shares; a weight that vanished (a share to a large power) is left out."""
    languages = [code for code in table_order(weights) if weights[code] > 0]
    if not languages:
        raise InputError("no language to weigh")
    total = sum(weights.values())
    return {code: weights[code] / total for code in languages}


def by_weight(weights: Mapping[str, Fraction], segments: int) -> dict[str, int]:
    """Round weights to segments: floors of the exact quotas, at least 1 each, then corrected to add up.

    An excess is taken one at a time from the currently largest, a shortage is given by the largest remainder of
    quota over allocation; ties go in table order. arXiv 2404.04748 gives the floors and the minimum.
    """
    languages = table_order(weights)
    require_enough(languages, segments)
    total = sum(weights.values())
    quotas = {code: segments * weights[code] / total for code in languages}
    allocation = {code: max(1, math.floor(quota)) for code, quota in quotas.items()}
    for _ in range(sum(allocation.values()) - segments):
        allocation[max(languages, key=allocation.__getitem__)] -= 1
    by_remainder = sorted(languages, key=lambda code: allocation[code] - quotas[code])
    for code in by_remainder[: max(0, segments - sum(allocation.values()))]:
        allocation[code] += 1
    return allocation
