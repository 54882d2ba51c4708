"""Second moments of a block's linears, and how far their outputs have drifted from those of the dense model."""

import copy
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

import torch
from torch import nn

from mbs_ray.compression.collect import Collected, collecting, watched
from mbs_ray.errors import InputError
from mbs_ray.methods import HELD_OUT, Drift, Moment, Statistic
from mbs_ray.model.decoder import Decoder
from mbs_ray.model.linears import shape_of

#: Small integers, so that sums of a few are exact in every float type.
_PROBE = 8


@dataclass(frozen=True, eq=False)
class Pair:
    """One microbatch twice, [microbatch, length, hidden_size]: the compressed model's hidden states and the dense ones.

    ``held_out`` marks the segments by which strengths are chosen, bool [microbatch] in host memory; None where they
    are given.
    """

    hidden: torch.Tensor
    dense: torch.Tensor
    held_out: torch.Tensor | None


def collect_with_drift(
    decoder: Decoder,
    block: nn.Module,
    dense_block: nn.Module,
    index: int,
    pairs: Iterable[Pair],
    passes_on: Callable[[torch.Tensor], None],
    writers: Collection[str],
    linears: Collection[str] | None = None,
) -> Collected:
    """Collect full moments and drifts of a block's linears, or of some, in a forward of each model.

    ``passes_on`` is given what the dense block, which may be the block itself, makes of the dense hidden states;
    ``writers`` are its :func:`residual_writers`. Raises :class:`InputError` naming a linear that is not called with
    every token of a microbatch.
    """
    if dense_block is block:
        dense_block = _twin(block)
    with collecting(block, [Statistic.FULL], linears) as (collected,), torch.no_grad():
        held = Collected()
        wanted = set(decoder.linears(index)) if linears is None else set(linears)
        watching = _Drifts(collected, held, wanted, writers)
        for pair in pairs:
            with watched(dense_block, wanted.union(writers), watching.keep):
                passed = decoder.run_block(dense_block, index, pair.dense)
            watching.begin(pair)
            with watched(block, wanted.union(writers), watching.compare):
                decoder.run_block(block, index, pair.hidden)
            passes_on(passed)
    for names in held.inputs():
        held.moments[names[0]].complete()
    collected.held = held
    return collected


class _Drifts:
    """The drifts of one block, microbatch by microbatch: first the dense outputs are kept, then others compared."""

    def __init__(
        self, collected: Collected, held: Collected, wanted: Collection[str], writers: Collection[str]
    ) -> None:
        self._collected, self._held = collected, held
        self._wanted, self._writers = wanted, writers
        self._outputs: dict[str, torch.Tensor] = {}

    def keep(self, name: str, module: nn.Module, inputs: torch.Tensor, output: torch.Tensor) -> None:
        # A copy: some blocks go on to add to it in place (Falcon's).
        self._outputs[name] = output.clone()

    def begin(self, pair: Pair) -> None:
        length, width = pair.hidden.shape[1:]
        # As positions, made on the host: a mask on the device would have to be read to know how many it picks.
        self._chooses, self._positions = pair.held_out is not None, None
        if pair.held_out is not None and pair.held_out.any():
            held = pair.held_out.repeat_interleave(length).nonzero().flatten()
            self._positions = held.to(pair.hidden.device)
        #: What the residual stream lacks of the dense model's where the block has come to.
        self._stream = (pair.dense - pair.hidden).view(-1, width)
        self._latest: tuple[torch.Tensor, Moment] | None = None

    def compare(self, name: str, module: nn.Module, inputs: torch.Tensor, output: torch.Tensor) -> None:
        rows, columns = shape_of(module)
        missing = (self._outputs.pop(name) - output).reshape(-1, rows)
        if len(missing) != len(self._stream):
            raise InputError(
                f"fit_to: dense: {name} is called with {len(missing)} of {len(self._stream)} tokens, so that they "
                "cannot be told apart; leave fit_to out for this model"
            )
        if name in self._writers:
            missing = self._stream = missing + self._stream
        if name not in self._wanted:
            return
        tokens, held = inputs.reshape(-1, columns), self._positions
        self._drift(self._collected, name, module, inputs).add(missing, tokens)
        if not self._chooses:
            return
        # Every replica has sums of its own, if only zeros: they are added up.
        apart = self._drift(self._held, name, module, inputs)
        # Linears that are called with one tensor share a moment, as they do in Collected.
        seen = self._latest[1] if self._latest is not None and self._latest[0] is inputs else None
        moments = self._held.moments
        if name not in moments:
            moments[name] = seen or Moment.zeros(columns, Statistic.FULL, device=inputs.device)
        if held is not None:
            apart.add(missing[held], tokens[held])
            if moments[name] is not seen:
                moments[name].accumulate(tokens[held])
        self._latest = inputs, moments[name]

    @staticmethod
    def _drift(collected: Collected, name: str, module: nn.Module, inputs: torch.Tensor) -> Drift:
        if name not in collected.drifts:
            collected.drifts[name] = Drift.zeros(*shape_of(module), device=inputs.device)
        return collected.drifts[name]


def _twin(block: nn.Module) -> nn.Module:
    """Return a module with the same tensors, whose calls nobody watches."""
    tensors = [*block.parameters(), *block.buffers()]
    return copy.deepcopy(block, {id(tensor): tensor for tensor in tensors})


def residual_writers(decoder: Decoder, block: nn.Module, index: int) -> list[str]:
    """Name the linears of a block whose output is added to the residual stream as it is.

    Found by trying: with the outputs of all linears as wide as the stream replaced by integers, those are writers whose
    integers reach the block's output unchanged. None are named where its output is not its input and theirs added up.
    """
    width = decoder.checkpoint.hidden_size
    wide = [name for name, shape in decoder.linears(index).items() if shape[0] == width]
    generator = torch.Generator().manual_seed(index)

    def numbers() -> torch.Tensor:
        drawn = torch.randint(-_PROBE, _PROBE + 1, (1, 2, width), generator=generator)
        return drawn.to(decoder.device, decoder.compute_dtype)

    hidden, given = numbers(), {name: numbers() for name in wide}

    def forward() -> torch.Tensor:
        with watched(block, wide, lambda name, module, inputs, output: given[name].clone().view_as(output)):
            return decoder.run_block(block, index, hidden)

    before, writers = forward(), []
    for name in wide:
        old, given[name] = given[name], numbers()
        changed = forward()
        if torch.equal(changed - before, given[name] - old):
            writers.append(name)
        given[name] = old
    whole = hidden + sum((given[name] for name in writers), torch.zeros_like(hidden))
    return writers if torch.equal(before, whole) else []


def held_out(start: int, stop: int) -> torch.Tensor:
    """Mark the held-out ones among the segments ``start`` to ``stop`` of a set, bool: the first of every eight."""
    return torch.arange(start, stop) % HELD_OUT == 0
