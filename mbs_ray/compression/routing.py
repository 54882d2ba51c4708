"""Moments for experts of a mixture that too few tokens reach, and reports of which tokens reach which.

Below ``least`` tokens, a stated multiple of its columns, a linear's own moment says little about it. The tokens that it
lacks are then made up for by the average one of the whole block, as if it had been sent there:

    M = M_own + (least − tokens) · M_all / tokens_all,

which weighs M_all by (least − tokens) / least. M_all is the moment at the linear's input with all tokens sent to its
expert: that of the mixture's input, and for ``down_proj`` what the expert itself makes of it.
"""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from mbs_ray.compression.collect import Collected, collect, squared_norms, watched, without_bias
from mbs_ray.methods import Moment, Statistic
from mbs_ray.model.decoder import Decoder
from mbs_ray.model.experts import Experts, expert_of, experts_of
from mbs_ray.model.linears import linears_of, shape_of
from mbs_ray.model.routes import Routes


@dataclass(frozen=True)
class MixtureReport:
    """Tokens that were routed to the experts of a mixture: ``tokens`` [languages][experts].

    ``borrowed``: by expert, the largest share that all tokens of the block have in one of its moments.
    """

    mixture: str
    languages: list[str]
    tokens: list[list[int]]
    borrowed: dict[int, float]


def mixture_reports(
    routes: Routes, borrowed: Mapping[str, float], total: Callable[[torch.Tensor], torch.Tensor]
) -> list[MixtureReport]:
    """Report the counts of ``routes``, summed by ``total``; ``borrowed`` shares by linear."""
    found = []
    for path in routes.experts:
        tokens = total(routes.tokens[path].cpu())
        shares: dict[int, float] = {}
        for linear, share in borrowed.items():
            if (own := expert_of(linear, [path])) is not None:
                shares[own[1]] = max(share, shares.get(own[1], 0.0))
        found.append(MixtureReport(path, routes.languages, tokens.tolist(), dict(sorted(shares.items()))))
    return found


def least_tokens(columns: int, expert_tokens: float) -> int:
    """Compute how many tokens a linear's own moment needs: ``expert_tokens`` × columns, and one at least."""
    return max(1, math.ceil(expert_tokens * columns))


def collect_routed(
    decoder: Decoder,
    block: nn.Module,
    index: int,
    microbatches: Callable[[], Iterable[torch.Tensor]],
    statistic: Statistic,
    linears: Collection[str],
    expert_tokens: float,
    routes: Routes,
    total: Callable[[torch.Tensor], torch.Tensor],
) -> Collected:
    """Collect as :func:`collect` does; for starved experts also over all tokens, in one more forward.

    ``routes`` count the first. ``total`` sums a tensor over all that collect other parts of the text: they must agree
    on what is starved.
    """
    with routes.counting(block):
        collected = collect(decoder, block, index, microbatches(), statistic, linears)
    mixtures, modules = experts_of(block), linears_of(block)
    own = [name for name in modules if name in linears and expert_of(name, mixtures)]
    if not own or statistic is Statistic.NONE:
        return collected
    _complete(collected, modules, own, statistic, decoder.device)
    counts = total(torch.tensor([collected.moments[name].tokens for name in own])).tolist()
    least = {name: least_tokens(shape_of(modules[name])[1], expert_tokens) for name in own}
    starved = {name: least[name] for name, count in zip(own, counts, strict=True) if count < least[name]}
    if starved:
        collected.overall = _collect_all_tokens(decoder, block, index, microbatches(), statistic, starved)
        collected.least = starved
    return collected


@torch.inference_mode()
def borrow(collected: Collected) -> dict[str, float]:
    """Make up for the tokens that starved experts lack, in place; return the share of all tokens by linear."""
    borrowed: dict[str, float] = {}
    overall, collected.overall = collected.overall, None
    if overall is None:
        return borrowed
    filled: dict[int, float] = {}
    for name, moment in collected.moments.items():
        if name not in overall.moments:
            continue
        shared, least = overall.moments[name], collected.least[name]
        if id(moment) not in filled:
            missing = least - moment.tokens
            moment.sum.add_(shared.sum, alpha=missing / shared.tokens)
            moment.tokens = least
            filled[id(moment)] = missing / least
        borrowed[name] = filled[id(moment)]
        scale = borrowed[name] * least / shared.tokens
        collected.energies[name] = collected.energies[name] + scale * overall.energies[name]
    return borrowed


def _complete(
    collected: Collected,
    modules: Mapping[str, nn.Module],
    linears: Sequence[str],
    statistic: Statistic,
    device: torch.device,
) -> None:
    """Give experts without any token moments of none, and bring all into the order of the block's ``modules``.

    Replicas see other tokens, and must have the same moments in the same order.
    """
    inputs: dict[str, Moment] = {}
    for name in linears:
        expert, _, kind = name.rpartition(".")
        key = name if kind == "down_proj" else expert
        if name not in collected.moments:
            columns = shape_of(modules[name])[1]
            collected.moments[name] = inputs.get(key) or Moment.zeros(columns, statistic, device=device)
            collected.energies[name] = torch.zeros((), dtype=torch.float64, device=device)
        inputs[key] = collected.moments[name]
    moments = collected.moments
    collected.moments = {name: moments[name] for name in modules if name in moments}


def _collect_all_tokens(
    decoder: Decoder,
    block: nn.Module,
    index: int,
    microbatches: Iterable[torch.Tensor],
    statistic: Statistic,
    starved: Mapping[str, int],
) -> Collected:
    """Collect moments and energies of the starved linears with all tokens of a mixture sent to their experts."""
    recording = _AllTokens(block, statistic, starved)
    with recording.watching():
        for hidden in microbatches:
            decoder.run_block(block, index, hidden)
    return recording.finished()


class _AllTokens:
    def __init__(self, block: nn.Module, statistic: Statistic, starved: Mapping[str, int]) -> None:
        self._statistic = statistic
        self._mixtures = experts_of(block)
        self._linears = [name for name in linears_of(block) if name in starved]
        self._collected = Collected()
        self._common: Moment | None = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        hooks = [one.register_forward_pre_hook(self._send(path)) for path, one in self._mixtures.items()]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def finished(self) -> Collected:
        for names in self._collected.inputs():
            self._collected.moments[names[0]].complete()
        order = [name for name in self._linears if name in self._collected.moments]
        self._collected.moments = {name: self._collected.moments[name] for name in order}
        return self._collected

    def _send(self, path: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
        starved: dict[str, list[str]] = {}
        for name in self._linears:
            if expert_of(name, [path]) is not None:
                expert, _, kind = name.removeprefix(f"{path}.").rpartition(".")
                starved.setdefault(expert, []).append(kind)

        def send(mixture: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            assert isinstance(mixture, Experts)
            flat = inputs[0].reshape(-1, inputs[0].shape[-1])
            self._common = None
            for number, kinds in starved.items():
                expert: Any = mixture.get_submodule(number)
                record = partial(self._record, f"{path}.{number}", flat)
                # Each linear is called once: what gate and up make of the tokens is the way to the input of down, too.
                with watched(expert, kinds, record):
                    inner = mixture.inner(expert, flat)
                    if "down_proj" in kinds:
                        expert.down_proj(inner)

        return send

    def _record(
        self, expert: str, flat: torch.Tensor, kind: str, linear: nn.Module, inputs: torch.Tensor, output: torch.Tensor
    ) -> None:
        """Add a call to the moment and the energy of a linear; all experts share the moment of the mixture's input."""
        name = f"{expert}.{kind}"
        moment = self._moment(name, inputs, self._common if inputs is flat else None)
        if inputs is flat:
            self._common = moment
        energies = self._collected.energies
        energies.setdefault(name, torch.zeros((), dtype=torch.float64, device=output.device))
        if self._statistic is Statistic.FULL:
            energies[name] += squared_norms(without_bias(linear, output)).sum()

    def _moment(self, name: str, inputs: torch.Tensor, seen: Moment | None) -> Moment:
        """Add tokens to a linear's moment, or share one that they were added to."""
        moments = self._collected.moments
        if name not in moments:
            columns = inputs.shape[-1]
            moments[name] = seen or Moment.zeros(columns, self._statistic, device=inputs.device)
        if moments[name] is not seen:
            moments[name].accumulate(inputs)
        return moments[name]
