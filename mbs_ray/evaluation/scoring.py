"""Negative log-likelihood of the tokens of a microbatch, chunked over tokens and vocabulary."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch

from mbs_ray.model.decoder import Decoder
from mbs_ray.model.head import vocabulary_chunks

LOGIT_BYTES = 256 * 2**20


class Scored(NamedTuple):
    """Of tokens 2…n of a microbatch, [microbatch, length - 1]: ``nll`` in nats float32, ``is_argmax`` bool.

    ``is_argmax``: no token of the vocabulary has a larger logit, and none before it the same: of equals the first
    counts, as torch and lm-evaluation-harness have it.
    """

    nll: torch.Tensor
    is_argmax: torch.Tensor


def score(decoder: Decoder, microbatches: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> list[Scored]:
    """How each of the microbatches' tokens 2…n were foreseen.

    A microbatch is (hidden states after :meth:`Decoder.finish` [microbatch, length or length - 1, hidden_size], int64
    token ids [microbatch, length]), in host memory: parts of it go to the device in turn. Lengths may differ between
    microbatches. The vocabulary is the outer loop, so that each row of the head is read once; a running log-sum-exp, 13
    bytes per token, is kept on the device. The microbatches are gone through once per 32,768 rows, and one of them is
    held at a time. At most 256 MiB of float32 logits live at once.
    """
    running: list[tuple[torch.Tensor, ...]] = []
    for start, stop in vocabulary_chunks(decoder.vocabulary):
        weight, bias = decoder.head_rows(start, stop)
        for position, (hidden, token_ids) in enumerate(microbatches):
            if position == len(running):
                running.append(_start(token_ids, decoder.device))
            peak, total, target, is_argmax = (one.view(-1) for one in running[position])
            tokens = token_ids[:, 1:].reshape(-1).to(decoder.device)
            states = hidden[:, : token_ids.shape[1] - 1].reshape(-1, hidden.shape[-1])
            for part in _parts(len(tokens), stop - start):
                logits = decoder.logits(states[part][None].to(decoder.device), weight, bias)[0].float()
                here, first = logits.max(dim=1)
                is_argmax[part] = torch.where(here > peak[part], start + first == tokens[part], is_argmax[part])
                highest = torch.maximum(peak[part], here)
                inside = (tokens[part] >= start) & (tokens[part] < stop)
                column = (tokens[part] - start).clamp(0, stop - start - 1)
                own = logits.gather(1, column[:, None])[:, 0]
                target[part] = torch.where(inside, own, target[part])
                shifted = logits.sub_(highest[:, None]).exp_().sum(dim=1)
                total[part] = total[part] * (peak[part] - highest).exp() + shifted
                peak[part] = highest
    # What is known of a token stays on the device until the end: reading it earlier would wait for every part.
    return [Scored((peak + total.log() - target).cpu(), right.cpu()) for peak, total, target, right in running]


def _start(token_ids: torch.Tensor, device: torch.device) -> tuple[torch.Tensor, ...]:
    """Running maximum, sum of exponentials relative to it, logit of the token itself, whether it is the maximum's."""
    zeros = torch.zeros(token_ids[:, 1:].shape, device=device)
    return torch.full_like(zeros, -torch.inf), zeros, zeros.clone(), torch.zeros_like(zeros, dtype=torch.bool)


def _parts(tokens: int, vocabulary: int) -> Iterator[slice]:
    step = max(1, LOGIT_BYTES // (4 * vocabulary))
    for start in range(0, tokens, step):
        yield slice(start, min(start + step, tokens))
