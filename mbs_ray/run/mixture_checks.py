"""What a run of a mixture of experts cannot have, said before anything starts."""

from mbs_ray.errors import InputError
from mbs_ray.languages.samplings import Adaptive
from mbs_ray.model.decoder import Decoder
from mbs_ray.run.spec import RunSpec


def has_mixtures(decoder: Decoder) -> bool:
    """Check whether any block of a model holds a mixture of experts."""
    return any(decoder.mixtures(index) for index in range(decoder.blocks))


def check_mixtures(spec: RunSpec, decoder: Decoder) -> None:
    """Raise :class:`InputError` naming a field that needs what is not kept of experts, or experts where none are."""
    if not has_mixtures(decoder):
        if spec.expert_segments:
            raise InputError(
                f"expert_segments: {decoder.checkpoint.folder.name} is no mixture of experts, of which any could be "
                "starved; leave it out"
            )
        return
    reasons = {
        "statistics": spec.statistics is not None and "moments of a single language miss most experts",
        "sampling": isinstance(spec.sampling, Adaptive) and "moments of a single language miss most experts",
        "budget": spec.budget is not None and spec.budget.tries and "trials need moments of single languages",
        "fit_to": spec.fit_to is not None and "the dense model sends its tokens to other experts",
    }
    for field, reason in reasons.items():
        if reason:
            raise InputError(
                f"{field}: is not built for mixtures of experts, and {decoder.checkpoint.folder.name} is one: "
                f"{reason}; leave it out"
            )
