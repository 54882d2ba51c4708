"""Samplings by name: from YAML or the command line, and back."""

from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mbs_ray.errors import InputError
from mbs_ray.languages.distribution import BYTES, TOKENS, Distribution, UnknownDistributionError, model_distribution
from mbs_ray.languages.samplings import Adaptive, Counts, Equal, Monolingual, Proportional, Sampling, Temperature

SAMPLINGS: Mapping[str, type[Any]] = MappingProxyType(
    {sampling.name: sampling for sampling in (Monolingual, Equal, Proportional, Temperature, Counts, Adaptive)}
)


def distribution_for(
    sampling: Sampling, model: str, file: Path | None, revision: str | None = None
) -> Distribution | None:
    """Return the distribution of a model; None where none is known and the sampling asks for none.

    Raises :class:`InputError` where the sampling asks for one, and for a distribution that is there but broken.
    """
    try:
        return model_distribution(model, file, revision)
    except UnknownDistributionError as error:
        asks = isinstance(sampling, Proportional | Temperature)
        if not asks and not (isinstance(sampling, Adaptive) and sampling.objective == "regret"):
            return None
        raise InputError(
            f"sampling {sampling.name}: {error}; equal, monolingual, counts and other objectives of adaptive need none"
        ) from error


def counts_tokens(sampling: Sampling, distribution: Distribution | None) -> bool:
    """Return whether a sampling wants the distribution in tokens, and it is in another unit."""
    wanted = isinstance(sampling, Proportional) and sampling.unit == TOKENS
    return wanted and distribution is not None and distribution.unit != TOKENS


def build_sampling(spec: str | Mapping[str, Any]) -> Sampling:
    """Build a sampling from its name, or from a mapping with `name` and its fields; InputError for any other."""
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
    """Return the mapping `build_sampling` makes this sampling from; plain YAML and JSON values.

    Without the unit where it is bytes, as runs of earlier versions have it.
    """
    options = asdict(sampling)  # type: ignore[call-overload]
    if options.get("unit") == BYTES:
        del options["unit"]
    return {"name": sampling.name, **options}
