"""Sensitivity of a language's nll to errors at the output of each linear, measured on the dense model. No Ray.

A linear whose weight changes by ΔW gives y + ΔW x, and the nll of a text grows by ½ Σ (gᵀ ΔW x)² over its tokens to
second order, with g = ∂ Σ nll / ∂ y and the empirical Fisher matrix for the Hessian (Hassibi & Stork, NIPS 1992,
section 2). If g and x are treated as independent (Martens & Grosse, arXiv 1503.05671, section 3), and E[g gᵀ] is
replaced by its mean diagonal s times the identity, that is ½ s Σ ‖ΔW x‖². The first order, gᵀ ΔW x, is left out: its
sign can be either.
"""

from collections.abc import Generator, Iterable, Mapping
from functools import partial

import torch
from torch import nn

from mbs_ray.compression.layer_error import LayerError
from mbs_ray.errors import InputError
from mbs_ray.model.decoder import Decoder
from mbs_ray.model.head import vocabulary_chunks
from mbs_ray.model.linears import linears_of, shape_of

#: Block → linear → language → s: mean of squared gradients over tokens and outputs, in squared nats.
Sensitivity = dict[int, dict[str, dict[str, float]]]


def measure_sensitivity(
    decoder: Decoder, token_ids: Mapping[str, torch.Tensor], microbatch: int
) -> Generator[tuple[int, int], None, Sensitivity]:
    """Run the segments of every language through the dense model and gradients of their Σ nll back, block by block.

    ``token_ids`` are int64 [segments, length] by language. Yields (done, total) after every microbatch and returns
    the sensitivity. The device holds a block and what its backward needs of one microbatch, or 32,768 rows of the head;
    host memory holds the inputs of all blocks, in the dtype of the forward. Raises :class:`InputError` naming the
    language whose gradients are not finite.
    """
    # One block is on the device at a time, forward and backward: so the inputs of every block wait in host memory, and
    # its backward runs its forward once more from them, with the gradient that the block after it left.
    pieces = [(language, piece) for language, ids in token_ids.items() for piece in ids.split(microbatch)]
    tokens = {language: ids.numel() for language, ids in token_ids.items()}
    total = (2 * decoder.blocks + 1) * len(pieces)
    steps = ((done, total) for done in range(1, total + 1))
    hidden = [decoder.embed(piece).cpu() for _, piece in pieces]
    inputs = []
    for index in range(decoder.blocks):
        inputs.append(list(hidden))
        block = decoder.load_block(index, decoder.read_block(index))
        for place, one in enumerate(hidden):
            hidden[place] = decoder.run_block(block, index, one.to(decoder.device)).cpu()
            yield next(steps)
    gradients = []
    for place, (_, piece) in enumerate(pieces):
        gradients.append(_head_gradient(decoder, hidden[place].to(decoder.device), piece).cpu())
        yield next(steps)
    found: Sensitivity = {}
    for index in reversed(range(decoder.blocks)):
        block = decoder.load_block(index, decoder.read_block(index))
        sums: dict[str, dict[str, torch.Tensor]] = {}
        for place, (language, _) in enumerate(pieces):
            one, gradient = inputs[index][place].to(decoder.device), gradients[place].to(decoder.device)
            gradients[place] = _block_gradient(decoder, block, index, one, gradient, sums, language).cpu()
            yield next(steps)
        del inputs[index]
        found[index] = _means(sums, block, tokens, f"block {index}")
    return dict(sorted(found.items()))


def predicted_increase(
    sensitivity: Sensitivity, errors: Iterable[tuple[int, LayerError]], tokens: int
) -> dict[str, float]:
    """Predict each language's increase of nll in nats per token: ½ Σ s ‖ΔW x‖² over linears, mean over ``tokens``.

    ``errors`` are (block, error of a linear over this many tokens of a language). Linears that the text of the
    sensitivity never called count as zero.
    """
    increase: dict[str, float] = {}
    for block, one in errors:
        weight = sensitivity[block].get(one.linear, {}).get(one.language, 0.0)
        increase[one.language] = increase.get(one.language, 0.0) + 0.5 * weight * one.error / tokens
    return increase


def _head_gradient(decoder: Decoder, hidden: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
    """Compute ∂ Σ nll / ∂ output of the last block, [microbatch, length, hidden_size]; tokens 2…n are scored."""
    hidden = hidden.detach().requires_grad_(True)
    finished = decoder.finish(hidden)
    states = finished[:, :-1].detach().requires_grad_(True)
    tokens = token_ids[:, 1:].to(decoder.device)
    chunks = vocabulary_chunks(decoder.vocabulary)
    whole = torch.full(tokens.shape, -torch.inf, device=decoder.device)
    with torch.no_grad():
        for start, stop in chunks:
            logits = decoder.logits(states, *decoder.head_rows(start, stop)).float()
            whole = torch.logaddexp(whole, logits.logsumexp(-1))
    for start, stop in chunks:
        logits = decoder.logits(states, *decoder.head_rows(start, stop)).float()
        # By the logits of any chunk, the gradient of Σ nll is softmax − one-hot; ``whole`` normalises the softmax.
        weight = (logits.detach() - whole[..., None]).exp_()
        inside = (tokens >= start) & (tokens < stop)
        own = (tokens - start).clamp(0, stop - start - 1)
        weight.scatter_add_(2, own[..., None], -inside[..., None].float())
        logits.backward(weight)
    assert states.grad is not None
    finished.backward(nn.functional.pad(states.grad, (0, 0, 0, 1)))
    assert hidden.grad is not None
    return hidden.grad


def _block_gradient(
    decoder: Decoder,
    block: nn.Module,
    index: int,
    inputs: torch.Tensor,
    gradient: torch.Tensor,
    sums: dict[str, dict[str, torch.Tensor]],
    language: str,
) -> torch.Tensor:
    """Compute the gradient by a block's input from that by its output; add squares at linears' outputs to ``sums``."""

    def record(name: str, own: torch.Tensor) -> None:
        square = own.float().square().sum(dtype=torch.float64)
        of_linear = sums.setdefault(name, {})
        of_linear[language] = of_linear.get(language, torch.zeros_like(square)) + square

    def watch(name: str, output: torch.Tensor) -> None:
        # The hook is on the tensor as the linear returned it, whatever the block then does to it in place.
        output.register_hook(partial(record, name))

    hooks = [
        module.register_forward_hook(lambda module, _, output, name=name: watch(name, output))
        for name, module in linears_of(block).items()
    ]
    inputs = inputs.detach().requires_grad_(True)
    try:
        decoder.run_block(block, index, inputs).backward(gradient)
    finally:
        for hook in hooks:
            hook.remove()
    assert inputs.grad is not None
    return inputs.grad


def _means(
    sums: Mapping[str, Mapping[str, torch.Tensor]], block: nn.Module, tokens: Mapping[str, int], where: str
) -> dict[str, dict[str, float]]:
    means: dict[str, dict[str, float]] = {}
    for name, module in linears_of(block).items():
        for language, square in sums.get(name, {}).items():
            mean = float(square) / (tokens[language] * shape_of(module)[0])
            if not torch.isfinite(square):
                raise InputError(
                    f"{language}: gradients at {where} {name} are not finite; take another compute_dtype, or a fixed "
                    "sampling"
                )
            means.setdefault(name, {})[language] = mean
    return means
