"""Second moments of a block's linears from one forward of its calibration segments."""

import enum
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import torch
from torch import nn

from mbs_ray.errors import InputError
from mbs_ray.methods import Drift, Moment, Statistic, squared_outputs
from mbs_ray.model.decoder import Decoder
from mbs_ray.model.experts import expert_of, experts_of
from mbs_ray.model.linears import bias_of, linears_of, shape_of, weight_of


@dataclass
class Collected:
    """Statistics of a block's linears, by their names, from one forward over the calibration set."""

    moments: dict[str, Moment] = field(default_factory=dict)
    """Of the inputs; linears that are called with the same tensor share one."""
    energies: dict[str, torch.Tensor] = field(default_factory=dict)
    """Σ ‖W x‖² over the tokens, float64 scalars: what a loss is relative to; 0 where moments are not full."""
    drifts: dict[str, Drift] = field(default_factory=dict)
    """Of the linears' outputs from the dense model's; empty unless they are fitted to it."""
    held: "Collected | None" = None
    """Moments and drifts of the held-out segments alone."""
    overall: "Collected | None" = None
    """Moments and energies of starved experts, with all tokens of the block sent to them."""
    least: dict[str, int] = field(default_factory=dict)
    """Tokens that the moments of these starved linears should be of."""
    borrowed: dict[str, float] = field(default_factory=dict)
    """Share of all tokens of the block in the moments of linears that were starved."""

    def inputs(self) -> list[list[str]]:
        """Group the names of the linears that share an input, in the order of the calls."""
        shared: dict[int, list[str]] = {}
        for name, moment in self.moments.items():
            shared.setdefault(id(moment), []).append(name)
        return list(shared.values())


def collect(
    decoder: Decoder,
    block: nn.Module,
    index: int,
    microbatches: Iterable[torch.Tensor],
    statistic: Statistic,
    linears: Collection[str] | None = None,
) -> Collected:
    """Collect moments at the input of every linear of a block, or of some, in one forward over all microbatches.

    ``microbatches`` are hidden states [microbatch, length, hidden_size]. Which linears a forward calls does not depend
    on them, but for experts: so where there are none, every forward after the first ends at the last of the calls.
    """
    if statistic is Statistic.NONE:
        return Collected()
    end = _End.NEVER
    if not experts_of(block):
        needed = needs_last_output(statistic, decoder.device.type == "cuda", decoder.compute_dtype)
        end = _End.OUTPUT if needed else _End.INPUT
    recording = _Recording(statistic)
    with _recorded(block, [recording], linears):
        for hidden in microbatches:
            with suppress(_Enough):
                decoder.run_block(block, index, hidden)
            recording.begin(end)
    collected, last = recording.collected, recording.last
    if end is _End.INPUT and last is not None and statistic is Statistic.FULL:
        collected.energies[last] = squared_outputs(weight_of(linears_of(block)[last]), collected.moments[last])
    return collected


def needs_last_output(statistic: Statistic, cuda: bool, compute_dtype: torch.dtype) -> bool:
    """Tell whether forwards that collect compute what the last linear gives, for its energy.

    Elsewhere it is left out; the energy is found from the moment, in float32. That takes GPUs longer than outputs in 16
    bits.
    """
    return statistic is Statistic.FULL and cuda and compute_dtype.itemsize == 2


@contextmanager
def collecting(
    block: nn.Module, statistics: Sequence[Statistic], linears: Collection[str] | None = None
) -> Iterator[list[Collected]]:
    """Watch the linears of a block while it is called; yield one :class:`Collected` for each statistic.

    Moments are complete once the context is left.
    """
    recordings = [_Recording(statistic) for statistic in statistics]
    ends = [block.register_forward_hook(lambda *_, own=own: own.begin()) for own in recordings]
    try:
        with _recorded(block, recordings, linears):
            yield [own.collected for own in recordings]
    finally:
        for end in ends:
            end.remove()


@contextmanager
def _recorded(
    block: nn.Module, recordings: Sequence["_Recording"], linears: Collection[str] | None = None
) -> Iterator[None]:
    """Record the calls of the linears of a block, or of some; complete the moments once the context is left."""
    hooks = []
    for name, module in linears_of(block).items():
        if linears is None or name in linears:
            for own in recordings:
                hooks.append(
                    module.register_forward_pre_hook(
                        lambda module, inputs, name=name, own=own: own.enter(name, module, inputs[0])
                    )
                )
                if own.statistic is Statistic.FULL:
                    hooks.append(
                        module.register_forward_hook(
                            lambda module, _, output, name=name, own=own: own.leave(name, module, output)
                        )
                    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
    for own in recordings:
        for names in own.collected.inputs():
            own.collected.moments[names[0]].complete()


@contextmanager
def watched(
    block: nn.Module,
    linears: Collection[str],
    watch: Callable[[str, nn.Module, torch.Tensor, torch.Tensor], torch.Tensor | None],
) -> Iterator[None]:
    """Call ``watch`` with name, module, input and output of every call of these linears; it may give another output."""
    hooks = [
        module.register_forward_hook(lambda module, inputs, output, name=name: watch(name, module, inputs[0], output))
        for name, module in linears_of(block).items()
        if name in linears
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class _Enough(Exception):  # noqa: N818  # it is none
    """Ends a forward of which nothing more is needed."""


class _End(enum.Enum):
    """Where, in the last of its calls, a forward ends."""

    INPUT = "input"
    OUTPUT = "output"
    NEVER = "never"


class _Recording:
    """Recorder of one statistic of the linears' inputs, call by call."""

    def __init__(self, statistic: Statistic) -> None:
        self.statistic = statistic
        self.collected = Collected()
        # Only the latest input is kept, to recognise it: linears that share one are called one after the other.
        self._latest: tuple[torch.Tensor, Moment] | None = None
        self._end = _End.NEVER
        self._called: list[str] = []
        self._expected: list[str] = []

    @property
    def last(self) -> str | None:
        """The linear that was called last in the first forward; None without any."""
        return self._expected[-1] if self._expected else None

    def enter(self, name: str, module: nn.Module, inputs: torch.Tensor) -> None:
        moments = self.collected.moments
        # The first linear that is called with a tensor adds it to a moment; the others called with it share the moment.
        seen = self._latest[1] if self._latest is not None and self._latest[0] is inputs else None
        if name not in moments:
            moments[name] = seen or Moment.zeros(shape_of(module)[1], self.statistic, device=inputs.device)
            self.collected.energies[name] = torch.zeros((), dtype=torch.float64, device=inputs.device)
        if moments[name] is not seen:
            moments[name].accumulate(inputs)
            self._latest = inputs, moments[name]
        self._called.append(name)
        if self._end is not _End.NEVER and self._called != self._expected[: len(self._called)]:
            raise InputError(
                f"{name}: the block calls its linears in another order than for the segments before; moments of such a "
                "block cannot be collected"
            )
        self._end_at(_End.INPUT)

    def leave(self, name: str, module: nn.Module, output: torch.Tensor) -> None:
        self.collected.energies[name] += squared_norms(without_bias(module, output)).sum()
        self._end_at(_End.OUTPUT)

    def begin(self, end: _End = _End.NEVER) -> None:
        """Prepare for another forward, which ends in the last of the calls that there were in the first one."""
        if self._end is _End.NEVER:
            self._end, self._expected = end, self._called
        self._latest, self._called = None, []

    def _end_at(self, end: _End) -> None:
        if self._end is end and len(self._called) == len(self._expected):
            raise _Enough


def without_bias(linear: nn.Module, output: torch.Tensor) -> torch.Tensor:
    bias = bias_of(linear)
    return output if bias is None else output - bias


def squared_norms(product: torch.Tensor) -> torch.Tensor:
    """Compute ‖y‖² of every token, float64."""
    return torch.linalg.vector_norm(product, dim=-1, dtype=torch.float32).double().square()


def sequential_groups(decoder: Decoder, block: nn.Module, index: int, microbatch: torch.Tensor) -> list[list[str]]:
    """Group the linears of a block by the input they share, in the order in which the forward calls them.

    Experts of a mixture are called at the same time: those that share its input make one group, the others another.
    """
    mixtures = experts_of(block)
    groups: dict[tuple[str, bool], list[str]] = {}
    called = collect(decoder, block, index, [microbatch], Statistic.DIAGONAL).inputs()
    # The microbatch may not have reached all experts.
    reached = {name for names in called for name in names}
    for names in [
        *called,
        *([name] for name in linears_of(block) if name not in reached and expert_of(name, mixtures)),
    ]:
        own = expert_of(names[0], mixtures)
        key = (names[0], False) if own is None else (own[0], names[0].endswith(".down_proj"))
        groups.setdefault(key, []).extend(names)
    return list(groups.values())
