"""One block of one run: collect second moments, solve every linear, propagate. Knows no Ray."""

import math
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn

from mbs_ray.errors import InputError
from mbs_ray.methods import Compressed, Factored, Method, Moment, Statistic, method_spec
from mbs_ray.model.decoder import Decoder
from mbs_ray.model.linears import bias_of, linears_of, shape_of
from mbs_ray.model.packed import IntegerScheme, pack_linear
from mbs_ray.report import LayerError, LinearReport


@dataclass
class Collected:
    """What one forward over the calibration set says of the linears of a block, by their names."""

    moments: dict[str, Moment] = field(default_factory=dict)
    """Of the inputs; linears that are called with the same tensor share one."""
    energies: dict[str, torch.Tensor] = field(default_factory=dict)
    """Σ ‖W x‖² over the tokens, float64 scalars: what a loss is relative to."""

    def inputs(self) -> list[list[str]]:
        """Names of the linears that share an input, in the order of the calls."""
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
    """Moments at the input of every linear of a block, or of some, in one forward over all microbatches.

    ``microbatches`` are hidden states [microbatch, length, hidden_size].
    """
    if statistic is Statistic.NONE:
        return Collected()
    with collecting(block, [statistic], linears) as (collected,):
        for hidden in microbatches:
            decoder.run_block(block, index, hidden)
    return collected


@contextmanager
def collecting(
    block: nn.Module, statistics: Sequence[Statistic], linears: Collection[str] | None = None
) -> Iterator[list[Collected]]:
    """What is seen of the linears of a block while it is called: one :class:`Collected` for each statistic."""
    recordings = [_Recording(statistic) for statistic in statistics]
    hooks = [
        module.register_forward_hook(
            lambda module, inputs, output, name=name, own=own: own.record(name, module, inputs[0], output)
        )
        for own in recordings
        for name, module in linears_of(block).items()
        if linears is None or name in linears
    ]
    hooks += [block.register_forward_hook(lambda *_, own=own: own.forget()) for own in recordings]
    try:
        yield [own.collected for own in recordings]
    finally:
        for hook in hooks:
            hook.remove()


class _Recording:
    """What one statistic says of the inputs of linears, call by call."""

    def __init__(self, statistic: Statistic) -> None:
        self._statistic = statistic
        self.collected = Collected()
        # Only the latest input is kept: linears that share one are called one after the other.
        self._latest: tuple[torch.Tensor, Moment] | None = None

    def record(self, name: str, module: nn.Module, inputs: torch.Tensor, output: torch.Tensor) -> None:
        moments, energies = self.collected.moments, self.collected.energies
        seen = self._latest[1] if self._latest is not None and self._latest[0] is inputs else None
        if name not in moments:
            moments[name] = seen or Moment.zeros(shape_of(module)[1], self._statistic, device=inputs.device)
            energies[name] = torch.zeros((), dtype=torch.float64, device=output.device)
        if moments[name] is not seen:
            moments[name].add(inputs)
            self._latest = inputs, moments[name]
        energies[name] += _squared_norms(_without_bias(module, output)).sum()

    def forget(self) -> None:
        self._latest = None


def weight_changes(
    decoder: Decoder, linears: Iterable[str], dense: Mapping[str, torch.Tensor], compressed: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """ΔW = compressed − dense of linears, from a block's tensors; on the device, in the forward's type."""
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
    """Σ ‖ΔW x‖² and Σ ‖W x‖² over the tokens of each language, in one forward of the dense block.

    Float64 [languages, linears, 2] in host memory; linears are those of ``changes``, in its order, a linear that the
    forward never calls has zeros. ``microbatches`` are the language of every segment, and hidden states [microbatch,
    length, hidden_size]. Products are made in the type of the forward, norms of tokens in float32.

    Raises :class:`InputError` for a linear that is given only some of the tokens (an expert): whose they are is lost.
    """
    sums = torch.zeros(len(languages), len(changes), 2, dtype=torch.float64, device=decoder.device)
    # Row by row: a microbatch may begin in one language and end in the next.
    members, tokens = torch.zeros(0, 0), 0
    places = {name: place for place, name in enumerate(changes)}

    def record(name: str, module: nn.Module, inputs: torch.Tensor, output: torch.Tensor) -> None:
        products = nn.functional.linear(inputs, changes[name]), _without_bias(module, output)
        norms = torch.stack([_squared_norms(product).flatten() for product in products], dim=1)
        if len(norms) != tokens:
            raise InputError(
                f"per_language: block {index} {name} is called with {len(norms)} of {tokens} tokens, so that their "
                "languages are not known; leave per_language out for this model"
            )
        sums[:, places[name]] += members @ norms.view(members.shape[1], -1, 2).sum(1)

    hooks = [
        block.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: record(name, module, inputs[0], output)
        )
        for name in changes
    ]
    try:
        for spoken, hidden in microbatches:
            tokens = hidden.shape[0] * hidden.shape[1]
            members = torch.tensor(
                [[float(one == language) for one in spoken] for language in languages],
                dtype=torch.float64,
                device=decoder.device,
            )
            decoder.run_block(block, index, hidden)
    finally:
        for hook in hooks:
            hook.remove()
    return sums.cpu()


def layer_errors(sums: torch.Tensor, languages: Sequence[str], linears: Sequence[str]) -> list[LayerError]:
    """What :func:`language_sums` made, language by language; without linears that were never called."""
    called = sums[..., 1].sum(0) > 0
    return [
        LayerError(language, linear, float(sums[row, column, 0]), float(sums[row, column, 1]))
        for row, language in enumerate(languages)
        for column, linear in enumerate(linears)
        if called[column]
    ]


def _without_bias(linear: nn.Module, output: torch.Tensor) -> torch.Tensor:
    bias = bias_of(linear)
    return output if bias is None else output - bias


def _squared_norms(product: torch.Tensor) -> torch.Tensor:
    """‖y‖² of every token, float64."""
    return torch.linalg.vector_norm(product, dim=-1, dtype=torch.float32).double().square()


def turns(decoder: Decoder, block: nn.Module, index: int, microbatch: torch.Tensor) -> list[list[str]]:
    """Linears of a block by the input they share, in the order in which the forward calls them."""
    return collect(decoder, block, index, [microbatch], Statistic.DIAGONAL).inputs()


@dataclass
class Solved:
    """Compressed linears of a block, by the names of their weights, and what each of them lost."""

    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    packed: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)
    """What :func:`pack_linear` makes of them, if the method quantizes."""
    reports: list[LinearReport] = field(default_factory=list)

    def add(self, other: "Solved") -> None:
        self.weights |= other.weights
        self.packed |= other.packed
        self.reports += other.reports


def solving_costs(
    shapes: Mapping[str, tuple[int, int]], linears: Sequence[str], inputs: Iterable[list[str]], statistic: Statistic
) -> list[tuple[list[str], float]]:
    """Linears that are solved together, because they share one of the ``inputs``, and the operations that takes.

    ``shapes`` are (rows, columns). A full moment is factorised once for all of them.
    """
    if statistic is Statistic.NONE:
        return [([name], float(math.prod(shapes[name]))) for name in linears]
    costs = []
    for group in inputs:
        columns = shapes[group[0]][1]
        rows = sum(shapes[name][0] for name in group)
        full = statistic is Statistic.FULL
        costs.append((group, 2 / 3 * columns**3 + rows * columns**2 if full else float(rows * columns)))
    return costs


def check_called(linears: Sequence[str], inputs: Iterable[list[str]], statistic: Statistic, where: str) -> None:
    """:class:`InputError` naming a linear that needs a moment and has none."""
    called = {name for group in inputs for name in group}
    for name in linears:
        if statistic is not Statistic.NONE and name not in called:
            raise InputError(f"{where} {name}: the forward never called this linear, so it has no second moment")


def solve(
    tensors: Mapping[str, torch.Tensor],
    linears: Sequence[str],
    collected: Collected,
    method: Method,
    device: torch.device,
    where: str,
) -> Solved:
    """Compress linears of a block, those with the largest input first.

    A factor is made once for all linears that share a moment, and lives, like the moment, no longer than they
    need it. ``where`` (``block 3``) begins the name under which an error speaks of a linear.
    """
    if method.statistic is Statistic.NONE:
        inputs = [[name] for name in linears]
    else:
        check_called(linears, collected.inputs(), method.statistic, where)
        inputs = [[name for name in group if name in linears] for group in collected.inputs()]
        inputs.sort(key=lambda group: collected.moments[group[0]].columns, reverse=True)
    solved = Solved()
    for group in inputs:
        solved.add(_solve_input(tensors, group, collected, method, device, where))
    order = {name: position for position, name in enumerate(linears)}
    solved.reports.sort(key=lambda report: order[report.name])
    return solved


def _solve_input(
    tensors: Mapping[str, torch.Tensor],
    group: Sequence[str],
    collected: Collected,
    method: Method,
    device: torch.device,
    where: str,
) -> Solved:
    """Linears that share an input, and so a moment and its factor."""
    begun = time.monotonic()
    solved = Solved()
    scheme = IntegerScheme.of(method_spec(method))
    moment = next((collected.moments.pop(name) for name in group if name in collected.moments), None)
    sharing = method if isinstance(method, Factored) else None
    factor = sharing.prepare(moment, f"{where} {group[0]}") if sharing is not None and moment is not None else None
    for name in group:
        collected.moments.pop(name, None)
        parameter, called = f"{name}.weight", f"{where} {name}"
        weight = tensors[parameter].to(device)
        result: Compressed
        if sharing is None:
            result = method.compress(weight, moment, called)
        else:
            result = sharing.compress(weight, moment, called, factor)
        solved.weights[parameter] = result.weight.cpu()
        if scheme is not None:
            solved.packed[parameter] = pack_linear(result, scheme)
        tokens = 0 if moment is None else moment.tokens
        energy = float(collected.energies.get(name, 0.0)) * 2 / max(tokens, 1)
        solved.reports.append(
            LinearReport(
                name=name,
                rows=weight.shape[0],
                columns=weight.shape[1],
                tokens=tokens,
                loss=result.loss,
                relative_loss=None if result.loss is None or not energy else result.loss / energy,
                sparsity=result.sparsity,
                damping=result.damping,
                dead_columns=result.dead_columns,
                seconds=time.monotonic() - begun,
            )
        )
        begun = time.monotonic()
    return solved
