"""The stand-in for a block while a model's own forward is run."""

import copy
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from mbs_ray.model.linears import linears_of


def hidden_states(output: Any) -> torch.Tensor:
    """Return the first output of a block: some blocks return a tuple or a list, most a tensor."""
    first = output[0] if isinstance(output, tuple | list) else output
    assert isinstance(first, torch.Tensor)
    return first


class Recorder(nn.Module):
    """A stand-in for a block that keeps the arguments of its call and returns its input, or what ``result`` holds."""

    def __init__(self, template: nn.Module) -> None:
        super().__init__()
        # In a list, so that the weightless block does not count as a part of the model.
        self.template = [template]
        self.returns_tuple: bool | None = None
        #: Linears of the block that its forward never calls; known after the first call.
        self.uncalled: list[str] = []
        self.clear()

    def clear(self) -> None:
        """Forget the last call."""
        self.calls = 0
        self.hidden: torch.Tensor | None = None
        self.result: torch.Tensor | None = None
        self.args: tuple = ()
        self.kwargs: dict[str, Any] = {}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Record the call, and return its input or ``result`` in the form in which the block returns it."""
        if not args:
            args = (kwargs.pop("hidden_states"),)
        self.calls += 1
        self.hidden, self.args, self.kwargs = args[0], args[1:], kwargs
        result = self.hidden if self.result is None else self.result
        if self.returns_tuple is None:
            self._learn(args, kwargs)
        return (result,) if self.returns_tuple else result

    def _learn(self, args: tuple, kwargs: dict[str, Any]) -> None:
        """Call the block itself, without weights, to see what it does."""
        template = copy.deepcopy(self.template[0]).to("meta")
        called: set[nn.Module] = set()
        for linear in linears_of(template).values():
            linear.register_forward_hook(lambda module, *_: called.add(module))
        args, kwargs = pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.to("meta"), (args, kwargs))
        self.returns_tuple = isinstance(template(*args, **kwargs), tuple | list)
        self.uncalled = [name for name, linear in linears_of(template).items() if linear not in called]

    def __getattr__(self, name: str) -> Any:
        # A model's forward may ask a block for its kind (sliding or full attention, for example).
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["template"][0], name)
