"""The error of each linear in each language."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from mbs_ray.compression.collect import squared_norms, watched, without_bias
from mbs_ray.errors import InputError
from mbs_ray.model.decoder import Decoder
from mbs_ray.model.experts import expert_of, experts_of


@dataclass(frozen=True)
class LayerError:
    """Error of one linear in one language: ``error`` is Σ ‖ΔW x‖² over its calibration tokens, ``energy`` Σ ‖W x‖².

    x is the linear's input in the dense block, which is given the block input that the moments were collected from.
    """

    language: str
    linear: str
    error: float
    energy: float

    @property
    def relative(self) -> float | None:
        return self.error / self.energy if self.energy else None


def weight_changes(
    decoder: Decoder, linears: Iterable[str], dense: Mapping[str, torch.Tensor], compressed: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Compute ΔW = compressed − dense of linears, from a block's tensors; on the device, in the forward's dtype."""
    parameters = ((name, f"{name}.weight") for name in linears)
    return {
        name: (compressed[parameter].float() - dense[parameter].float()).to(decoder.device, decoder.compute_dtype)
        for name, parameter in parameters
    }


def language_sums(
    decoder: Decoder,
    block: nn.Module,
    index: int,
    microbatches: Iterable[tuple[Sequence[str], torch.Tensor]],
    changes: Mapping[str, torch.Tensor],
    languages: Sequence[str],
) -> torch.Tensor:
    """Sum ‖ΔW x‖² and ‖W x‖² over the tokens of each language, in one forward of the dense block.

    Float64 [languages, linears, 2] in host memory; linears are those of ``changes``, in its order; a linear that the
    forward never calls has zeros. ``microbatches`` are the language of every segment, and hidden states [microbatch,
    length, hidden_size]. Products are computed in the dtype of the forward, norms of tokens in float32.

    Raises :class:`InputError` for a linear that receives only some of the tokens and is no expert: their languages
    are then unknown.
    """
    sums = torch.zeros(len(languages), len(changes), 2, dtype=torch.float64, device=decoder.device)
    # Row by row, by [languages, segments] of zeros and ones: a microbatch may begin in one language and end in another.
    members, tokens = torch.zeros(0, 0), 0
    places = {name: place for place, name in enumerate(changes)}
    mixtures = experts_of(block)

    def record(name: str, module: nn.Module, inputs: torch.Tensor, output: torch.Tensor) -> None:
        products = nn.functional.linear(inputs, changes[name]), without_bias(module, output)
        norms = torch.stack([squared_norms(product).flatten() for product in products], dim=1)
        if (own := expert_of(name, mixtures)) is not None:
            positions = mixtures[own[0]].rows
            assert positions is not None
            sums[:, places[name]] += members[:, positions // (tokens // members.shape[1])] @ norms
            return
        if len(norms) != tokens:
            raise InputError(
                f"per_language: block {index} {name} is called with {len(norms)} of {tokens} tokens, so that their "
                "languages are not known; leave per_language out for this model"
            )
        sums[:, places[name]] += members @ norms.view(members.shape[1], -1, 2).sum(1)

    with watched(block, changes, record):
        for spoken, hidden in microbatches:
            tokens = hidden.shape[0] * hidden.shape[1]
            members = torch.tensor(
                [[float(one == language) for one in spoken] for language in languages],
                dtype=torch.float64,
                device=decoder.device,
            )
            decoder.run_block(block, index, hidden)
    return sums.cpu()


def layer_errors(sums: torch.Tensor, languages: Sequence[str], linears: Sequence[str]) -> list[LayerError]:
    """List the sums of :func:`language_sums`, language by language, without linears that were never called."""
    called = sums[..., 1].sum(0) > 0
    return [
        LayerError(language, linear, float(sums[row, column, 0]), float(sums[row, column, 1]))
        for row, language in enumerate(languages)
        for column, linear in enumerate(linears)
        if called[column]
    ]
