"""What a budget needs before it is dealt out: the run by which amounts are tried, and a ramp that is one."""

from typing import Any

import numpy as np

from mbs_ray.errors import InputError
from mbs_ray.languages.dealing import ramp_of_widths
from mbs_ray.methods import Method
from mbs_ray.model.decoder import Decoder
from mbs_ray.run.modes import Budget, DenseStatistics
from mbs_ray.run.spec import RunSpec


def pilot_spec(spec: RunSpec, budget: Budget) -> RunSpec:
    """Return the run of dense statistics by which amounts are tried: without what a trial has not.

    It keeps the evaluation sets, which must not share a document with the text that it learns from.
    """
    statistics = spec.statistics
    if statistics is None:
        fields = {"segments_per_language": budget.segments_per_language, "weights": "allocation"}
        statistics = DenseStatistics.model_validate(fields)
    without: dict[str, Any] = {"budget": None, "fit_to": None, "true_sequential": False}
    return spec.model_copy(update={**without, "statistics": statistics, "per_language": True})


def check_ramp(budget: Budget, method: Method, decoder: Decoder) -> None:
    """Raise :class:`InputError` where a ramp of bits gives all blocks of a model the same."""
    if budget.tries or budget.field(method) != "bits":
        return
    shapes = [(index, shape) for index in range(decoder.blocks) for shape in decoder.linears(index).values()]
    weights = np.array([rows * columns for _, (rows, columns) in shapes])
    bits = ramp_of_widths([index for index, _ in shapes], weights, budget.mean(method))
    if len(set(bits.tolist())) == 1:
        raise InputError(
            f"budget: a ramp to {budget.mean(method):g} bits gives all {decoder.blocks} blocks {bits[0]}; give bits "
            f"that are more than 1/{decoder.blocks} above a whole number"
        )
