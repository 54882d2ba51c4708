"""Rates of the small products of a mixture's experts, and of the copies of their matrices, measured."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from mbs_ray.cluster.activations.host_memory import return_freed_memory
from mbs_ray.compression.collect import squared_norms, watched
from mbs_ray.methods import Moment, Statistic
from mbs_ray.model.decoder import Decoder
from mbs_ray.model.experts import expert_of, experts_of
from mbs_ray.model.linears import linears_of, shape_of
from mbs_ray.plan.rates import Rates

Timing = Callable[..., float]
#: Moments of as many experts are added to in turn: one alone would stay in the caches.
_MOMENTS = 4
#: Bytes of matrices that are copied.
_COPIED = 256 * 2**20


def measure_experts(
    decoder: Decoder, block: nn.Module, index: int, tensors: Mapping[str, torch.Tensor], flat: torch.Tensor,
    full: bool, rates: Rates, timing: Timing,
) -> Rates:  # fmt: skip
    """Measure with the tokens of one microbatch, ``flat`` [tokens, hidden size], and one expert of the block.

    ``full``: moments are full ones, and ``rates.moments`` was measured.
    """
    path, mixture = next(iter(experts_of(block).items()))
    expert: Any = mixture.get_submodule("0")
    linears = linears_of(expert)
    operations = 2.0 * sum(rows * columns for rows, columns in map(shape_of, linears.values())) * len(flat)

    def all_tokens() -> None:
        with watched(expert, linears, lambda *call: squared_norms(call[-1]).sum() and None):
            expert.down_proj(mixture.inner(expert, flat))

    reached = operations / timing(all_tokens, repeats=3)
    rates = replace(rates, expert_forward=reached / rates.forward, copies=_copies(decoder, path, tensors, timing))
    if full:
        few = max(1, round(len(flat) * decoder.routed(index, f"{path}.0.down_proj")))
        rates = replace(rates, expert_moments=_moments(flat[:few], timing) / rates.moments)
    return rates


def _moments(tokens: torch.Tensor, timing: Timing) -> float:
    """Measure adding the tokens that one microbatch sends to an expert to its moment, in operations per second."""
    moments = [Moment.zeros(tokens.shape[1], Statistic.FULL, device=tokens.device) for _ in range(_MOMENTS)]

    def add() -> None:
        for moment in moments:
            moment.accumulate(tokens)

    return _MOMENTS * float(tokens.shape[1]) ** 2 * len(tokens) / timing(add, repeats=3)


def _copies(decoder: Decoder, path: str, tensors: Mapping[str, torch.Tensor], timing: Timing) -> float:
    """Measure copying matrices of experts into fresh memory, in bytes per second that are written."""
    chosen, size = [], 0
    for name, tensor in tensors.items():
        if expert_of(name, [path]) is not None and size < _COPIED:
            chosen.append(tensor)
            size += tensor.numel() * decoder.compute_dtype.itemsize

    def copy() -> list[torch.Tensor]:
        # As after every part of a stage: memory that was used before costs no faults, and would look twice as fast.
        return_freed_memory()
        return [tensor.to(decoder.compute_dtype, copy=True) for tensor in chosen]

    return size / timing(copy, repeats=3)
