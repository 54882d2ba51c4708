"""The experts of a mixture with each of their matrices a linear of its own.

transformers holds a block's experts in one module: ``gate_up_proj`` [experts, 2 · intermediate, hidden], ``down_proj``
[experts, hidden, intermediate], or the transposed of both. What such a module computes is the same for all models that
declare their experts to ``transformers.integrations.moe`` (seen in 5.23); one that does not is left as it is.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

_DECLARED = ("has_gate", "has_bias", "is_transposed", "is_concatenated", "has_post_expert_norm")
_DOWN = "down_proj"
#: What configurations call the number of experts for each token.
_CHOSEN = ("num_experts_per_tok", "moe_topk", "moe_k", "num_experts_per_token", "moe_top_k")


@dataclass(frozen=True)
class Origin:
    """Where a matrix or bias of one expert lies in a module that holds all: ``tensor[expert][rows]``.

    ``place``: which of the matrices that are fused there, from 0. ``transposed``: they lie as [columns, rows].
    """

    name: str
    shape: tuple[int, ...]
    expert: int
    place: int
    rows: slice | None
    transposed: bool


class Experts(nn.Module):
    """Experts as a list, each with linears ``gate_proj``, ``up_proj`` and ``down_proj``; stands where ``fused`` stood.

    While an expert is called, ``rows`` are the positions, among all tokens of the forward, of those it is called with.
    """

    def __init__(self, fused: Any) -> None:
        super().__init__()
        # In a list, so that the weightless module does not count as a part of the model.
        self._fused = [fused]
        self.rows: torch.Tensor | None = None
        experts, hidden, intermediate = fused.down_proj.shape
        if fused.is_transposed:
            hidden, intermediate = intermediate, hidden
        dtype = fused.down_proj.dtype
        for number in range(experts):
            expert = nn.Module()
            for name, _, _ in _parts(fused):
                columns, rows = (intermediate, hidden) if name == _DOWN else (hidden, intermediate)
                linear = nn.Linear(columns, rows, bias=fused.has_bias, device="meta", dtype=dtype)
                expert.add_module(name, linear)
            self.add_module(str(number), expert)

    @property
    def count(self) -> int:
        """Number of experts."""
        return len(self._modules)

    def forward(self, hidden: torch.Tensor, *given: torch.Tensor, **named: torch.Tensor) -> torch.Tensor:
        """Sum what its experts make of each token, weighted by the router, in float32: as transformers does.

        ``given``: for each token the numbers of its experts, int64 [tokens, k], and their weights [tokens, k].
        """
        index, weights = sorted((*given, *named.values()), key=torch.is_floating_point)
        flat = hidden.reshape(-1, hidden.shape[-1])
        # Tokens come to an expert in the order in which it was chosen first, second … : as in transformers' own loop.
        chosen, k = index.t().reshape(-1), index.shape[-1]
        order = chosen.argsort(stable=True)
        tokens, shares = order % len(flat), weights.t().reshape(-1)[order]
        counts = self._counts(chosen)
        outputs = flat.new_zeros(k * len(flat), flat.shape[-1], dtype=torch.float32)
        experts: Any = zip(
            self.children(), order.split(counts), tokens.split(counts), shares.split(counts), strict=True
        )
        for expert, places, rows, share in experts:
            if len(rows) or flat.is_meta:
                self.rows = rows
                outputs[places] = (expert.down_proj(self.inner(expert, flat[rows])) * share[:, None]).float()
        self.rows = None
        return outputs.view(k, *flat.shape).sum(0).to(hidden.dtype).view_as(hidden)

    def inner(self, expert: Any, inputs: torch.Tensor) -> torch.Tensor:
        """Compute the input of one expert's ``down_proj`` for inputs [tokens, hidden]."""
        fused = self._fused[0]
        if not fused.has_gate:
            activated: torch.Tensor = fused.act_fn(expert.up_proj(inputs))
            return activated
        gate, up = expert.gate_proj(inputs), expert.up_proj(inputs)
        both = torch.cat([gate, up], -1) if fused.is_concatenated else torch.stack([gate, up], -1).flatten(-2)
        gated: torch.Tensor = fused._apply_gate(both)
        return gated

    def _counts(self, chosen: torch.Tensor) -> list[int]:
        """Count each expert's tokens. Without numbers (on the meta device) all get as many."""
        if chosen.is_meta:
            each, more = divmod(len(chosen), self.count)
            return [each + (number < more) for number in range(self.count)]
        counts: list[int] = torch.bincount(chosen, minlength=self.count).tolist()
        return counts


def list_experts(block: nn.Module) -> dict[str, Origin]:
    """Replace the modules of a block that hold experts by :class:`Experts`, in place.

    Return the origin of each new parameter by its name; the origin's name is inside the block, too.
    """
    origins: dict[str, Origin] = {}
    for path, module in list(block.named_modules()):
        if _is_fused(module):
            block.set_submodule(path, Experts(module))
            origins |= {f"{path}.{name}": one for name, one in _origins(f"{path}.", module).items()}
    return origins


def experts_of(module: nn.Module) -> dict[str, Experts]:
    """Find the mixtures inside a module by their names."""
    return {name: one for name, one in module.named_modules() if isinstance(one, Experts)}


def expert_of(linear: str, mixtures: Iterable[str]) -> tuple[str, int] | None:
    """Return the mixture and the number of the expert that a linear belongs to; None for any other linear."""
    for path in mixtures:
        if linear.startswith(f"{path}."):
            return path, int(linear.removeprefix(f"{path}.").split(".")[0])
    return None


def chosen_of(config: Any) -> int | None:
    """Return the number of experts that each token is sent to, as a configuration has it; None where it has none."""
    found = (getattr(config, name, None) for name in _CHOSEN)
    return next((one for one in found if one is not None), None)


def routers_of(module: nn.Module) -> set[str]:
    """Name the modules that choose among the experts of a mixture beside them, or weigh a shared one.

    Some are linears, some have a weight of their own; other programs take all for linears.
    """
    routers = set()
    for path, mixture in experts_of(module).items():
        owner = path.rpartition(".")[0]
        for name, one in module.get_submodule(owner).named_modules(prefix=owner):
            weight = one._parameters.get("weight")
            matrix = weight is not None and weight.dim() == 2 and not name.startswith(f"{path}.")
            if matrix and weight.shape[0] in (1, mixture.count) and _is_gate(name.removeprefix(f"{owner}.")):
                routers.add(name)
    return routers


def _is_gate(name: str) -> bool:
    """Tell a router by its name below the module that owns it: a shared expert may have as many rows by chance."""
    return not name.endswith("_proj") and any(word in name for word in ("gate", "router"))


def _is_fused(module: Any) -> bool:
    return (
        all(hasattr(module, declared) for declared in _DECLARED)
        and not module.has_post_expert_norm
        and isinstance(getattr(module, _DOWN, None), nn.Parameter)
    )


def _parts(fused: Any) -> list[tuple[str, str, int]]:
    """List the linears of an expert: name, the tensor that holds them for all experts, and their place in it."""
    if not fused.has_gate:
        return [("up_proj", "up_proj", 0), (_DOWN, _DOWN, 0)]
    return [("gate_proj", "gate_up_proj", 0), ("up_proj", "gate_up_proj", 1), (_DOWN, _DOWN, 0)]


def _origins(prefix: str, fused: Any) -> dict[str, Origin]:
    found = {}
    for name, tensor, place in _parts(fused):
        rows = None
        if tensor == "gate_up_proj":
            size = fused.down_proj.shape[1 if fused.is_transposed else 2]
            rows = slice(place * size, (place + 1) * size) if fused.is_concatenated else slice(place, None, 2)
        sources = {"weight": (tensor, fused.is_transposed)}
        if fused.has_bias:
            sources["bias"] = (f"{tensor}_bias", False)
        for number in range(len(fused.down_proj)):
            for parameter, (held, transposed) in sources.items():
                shape = tuple(getattr(fused, held).shape)
                origin = Origin(prefix + held, shape, number, place, rows, transposed)
                found[f"{number}.{name}.{parameter}"] = origin
    return found
