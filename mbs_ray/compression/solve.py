"""One block of one run: collect second moments, solve every linear, propagate. Knows no Ray."""

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import torch

from mbs_ray.compression.block_report import LinearReport
from mbs_ray.compression.collect import Collected
from mbs_ray.errors import InputError
from mbs_ray.methods import (
    Compressed,
    Factored,
    HeldOut,
    Method,
    Moment,
    Statistic,
    fitted,
    method_spec,
    strengths,
)
from mbs_ray.model.packed import IntegerScheme, pack_linear


@dataclass
class Solved:
    """Compressed linears of a block, by the names of their weights, and a report of each."""

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
    """Group linears that are solved together, because they share one of the ``inputs``; count each group's operations.

    ``shapes`` are (rows, columns). A full moment is factorised once for its group.
    """
    if statistic is Statistic.NONE:
        return [([name], float(math.prod(shapes[name]))) for name in linears]
    costs = []
    for group in inputs:
        columns = shapes[group[0]][1]
        rows = sum(shapes[name][0] for name in group)
        full = statistic is Statistic.FULL
        costs.append((group, columns**3 / 3 + rows * columns**2 if full else float(rows * columns)))
    return costs


def check_called(linears: Sequence[str], inputs: Iterable[list[str]], statistic: Statistic, where: str) -> None:
    """Raise :class:`InputError` naming a linear that needs a moment and has none."""
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
    strength: float | None = None,
    methods: Mapping[str, Method] = MappingProxyType({}),
) -> Solved:
    """Compress linears of a block, those with the largest input first.

    A factor is computed once for all linears that share a moment, and is freed, like the moment, as soon as they
    are solved. Linears with a drift are fitted to the dense model first, by ``strength`` of the step or, where that is
    None, what their held-out segments say. ``methods``: those of linears whose amount is another than ``method``'s.
    ``where`` (``block 3``) begins the name of a linear in errors.
    """
    statistic = Statistic.FULL if collected.drifts else method.statistic
    if statistic is Statistic.NONE:
        inputs = [[name] for name in linears]
    else:
        check_called(linears, collected.inputs(), statistic, where)
        inputs = [[name for name in group if name in linears] for group in collected.inputs()]
        inputs.sort(key=lambda group: collected.moments[group[0]].columns, reverse=True)
    solved = Solved()
    for group in inputs:
        own = {name: methods.get(name, method) for name in group}
        solved.add(_solve_input(tensors, own, collected, method, device, where, strength))
    order = {name: position for position, name in enumerate(linears)}
    solved.reports.sort(key=lambda report: order[report.name])
    return solved


def _solve_input(
    tensors: Mapping[str, torch.Tensor],
    methods: Mapping[str, Method],
    collected: Collected,
    method: Method,
    device: torch.device,
    where: str,
    strength: float | None,
) -> Solved:
    """Solve the linears that share an input, and so a moment and its factor, which no amount changes."""
    begun = time.monotonic()
    solved = Solved()
    group = list(methods)
    moment = next((collected.moments.pop(name) for name in group if name in collected.moments), None)
    aims: dict[str, tuple[torch.Tensor, float]] = {}
    if collected.drifts and moment is not None:
        aims = _fitted(tensors, group, collected, moment, strength, f"{where} {group[0]}")
        moment = _of_statistic(moment, method.statistic)
    factor = None
    if isinstance(method, Factored) and moment is not None:
        factor = method.prepare(moment, f"{where} {group[0]}")
    for name, own in methods.items():
        collected.moments.pop(name, None)
        parameter, called = f"{name}.weight", f"{where} {name}"
        weight, taken = aims.pop(name, None) or (tensors[parameter].to(device), None)
        if taken is not None and getattr(own, "keep_zeros", False):
            weight = weight.masked_fill_((tensors[parameter] == 0).to(device), 0)
        result: Compressed
        if isinstance(own, Factored):
            result = own.compress(weight, moment, called, factor)
        else:
            result = own.compress(weight, moment, called)
        solved.weights[parameter] = result.weight.cpu()
        if (scheme := IntegerScheme.of(method_spec(own))) is not None:
            assert result.codes is not None and result.scales is not None and result.zeros is not None
            solved.packed[parameter] = pack_linear(result.codes, result.scales, result.zeros, scheme)
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
                strength=taken,
                borrowed=collected.borrowed.get(name, 0.0),
            )
        )
        begun = time.monotonic()
    return solved


def _fitted(
    tensors: Mapping[str, torch.Tensor],
    group: Sequence[str],
    collected: Collected,
    moment: Moment,
    strength: float | None,
    where: str,
) -> dict[str, tuple[torch.Tensor, float]]:
    """Fit the linears of one input to the dense model; return their weights and strengths, and free their drifts."""
    dense = {name: tensors[f"{name}.weight"].to(moment.sum.device) for name in group}
    drifts = {name: collected.drifts.pop(name) for name in group}
    taken = dict.fromkeys(group, strength or 0.0)
    if collected.held is not None and collected.held.drifts:
        apart = {name: collected.held.drifts.pop(name) for name in group}
        of_input = [collected.held.moments.pop(name) for name in group]
        taken = strengths(dense, moment, drifts, HeldOut(of_input[0], apart), where)
        del apart, of_input
    weights = fitted(dense, moment, drifts, taken, where)
    return {name: (weight, taken[name]) for name, weight in weights.items()}


def _of_statistic(moment: Moment, statistic: Statistic) -> Moment | None:
    """Return what a method needs of a full moment."""
    if statistic is Statistic.DIAGONAL:
        return Moment(statistic, moment.columns, moment.tokens, moment.diagonal().clone())
    return moment if statistic is Statistic.FULL else None
