"""What the experts of a mixture add to a block: copies of their matrices, and all tokens through starved ones."""

import math
from functools import lru_cache

from mbs_ray.model.decoder import Decoder
from mbs_ray.model.experts import expert_of
from mbs_ray.plan.planned_work import PlannedRun
from mbs_ray.plan.rates import Rates
from mbs_ray.plan.stage_memory import joined_bytes, starved_inputs


def first_mixture(decoder: Decoder) -> int:
    """Find the first block with a mixture; 0 where none has one."""
    return next((index for index in range(decoder.blocks) if decoder.mixtures(index)), 0)


@lru_cache(maxsize=1024)
def expert_weights(decoder: Decoder, index: int) -> int:
    """Count the weights of all experts of a block."""
    mixtures = decoder.mixtures(index)
    return sum(math.prod(shape) for name, shape in decoder.linears(index).items() if expert_of(name, mixtures))


def loading_seconds(decoder: Decoder, index: int, rates: Rates) -> float:
    """Estimate the seconds in which host memory takes a copy of all experts in the dtype of the forward.

    Only they are counted: what is copied for few tokens takes about as long as their products, for all tokens of a
    calibration set next to nothing.
    """
    return expert_weights(decoder, index) * decoder.compute_dtype.itemsize / rates.copies


def joining_seconds(decoder: Decoder, index: int, rates: Rates) -> float:
    """Estimate the seconds in which experts are taken out of the tensors that hold all of them, or put back."""
    return joined_bytes(decoder, index) / rates.copies


def all_tokens_seconds(work: PlannedRun, index: int, rates: Rates) -> float:
    """Estimate the seconds, without moments, for all calibration tokens through the experts that too few reach.

    Gate and up are called for the input of down as well.
    """
    shapes, starved = work.decoder.linears(index), set()
    for _, names in starved_inputs(work, index):
        for name in names:
            expert, _, kind = name.rpartition(".")
            own = ("gate_proj", "up_proj", kind)
            starved |= {one for one in (f"{expert}.{part}" for part in own) if one in shapes}
    weights = sum(math.prod(shapes[name]) for name in starved)
    return 2.0 * weights * work.calibration.tokens / (rates.forward * rates.expert_forward)
