"""One block of one run: collect second moments, solve every linear, propagate. Knows no Ray."""

import time
from collections.abc import Iterable, Mapping

import torch
from torch import nn

from mbs_ray.errors import InputError
from mbs_ray.methods import Compressed, Method, Moment, Statistic
from mbs_ray.model.decoder import Decoder
from mbs_ray.report import LinearReport


def collect(
    decoder: Decoder,
    block: nn.Module,
    index: int,
    microbatches: Iterable[torch.Tensor],
    statistic: Statistic,
) -> dict[str, Moment]:
    """Moments at the input of every linear of a block, in one forward over all microbatches.

    ``microbatches`` are hidden states [microbatch, length, hidden_size]. Linears that are called
    with the same tensor (query, key and value of most models) share one :class:`Moment`.
    """
    if statistic is Statistic.NONE:
        return {}
    moments: dict[str, Moment] = {}
    # Only the latest input is kept: linears that share one are called one after the other.
    latest: list[tuple[torch.Tensor, Moment]] = []

    def record(name: str, module: nn.Linear, inputs: tuple[torch.Tensor, ...]) -> None:
        seen = next((moment for tensor, moment in latest if tensor is inputs[0]), None)
        if name not in moments:
            moments[name] = seen or Moment.zeros(module.in_features, statistic, device=inputs[0].device)
        if moments[name] is not seen:
            moments[name].add(inputs[0])
            latest[:] = [(inputs[0], moments[name])]

    hooks = [
        module.register_forward_pre_hook(lambda module, inputs, name=name: record(name, module, inputs))
        for name, module in block.named_modules()
        if isinstance(module, nn.Linear)
    ]
    try:
        for hidden in microbatches:
            decoder.run_block(block, index, hidden)
            latest.clear()
    finally:
        for hook in hooks:
            hook.remove()
    return moments


def solve(
    tensors: Mapping[str, torch.Tensor],
    linears: Iterable[str],
    moments: dict[str, Moment],
    method: Method,
    device: torch.device,
    where: str,
) -> tuple[dict[str, torch.Tensor], list[LinearReport]]:
    """Compress every linear of a block; the new weights by parameter name, and what they lost.

    A moment is dropped from ``moments`` after its last use. ``where`` (``block 3``) begins the
    name under which an error speaks of a linear.
    """
    weights: dict[str, torch.Tensor] = {}
    reports = []
    names = list(linears)
    for position, name in enumerate(names):
        begun = time.monotonic()
        parameter = f"{name}.weight"
        weight = tensors[parameter].to(device)
        moment = moments.get(name)
        if moment is None and method.statistic is not Statistic.NONE:
            raise InputError(f"{where} {name}: the forward never called this linear, so it has no second moment")
        result: Compressed = method.compress(weight, moment, f"{where} {name}")
        weights[parameter] = result.weight.cpu()
        reports.append(
            LinearReport(
                name=name,
                rows=weight.shape[0],
                columns=weight.shape[1],
                tokens=moment.tokens if moment is not None else 0,
                loss=result.loss,
                relative_loss=result.relative_loss,
                sparsity=result.sparsity,
                damping=result.damping,
                dead_columns=result.dead_columns,
                seconds=time.monotonic() - begun,
            )
        )
        if moment is not None and all(moments.get(later) is not moment for later in names[position + 1 :]):
            del moments[name]
    return weights, reports
