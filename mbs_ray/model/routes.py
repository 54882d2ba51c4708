"""Which tokens the mixtures of a block send to which of their experts."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from mbs_ray.model.experts import experts_of


class Routes:
    """Counts of the tokens of each language that the mixtures of a block send to each expert.

    ``experts``: number of experts by mixture. ``tokens``: int64 [languages, experts] by mixture, once it was called; a
    token that is sent to k experts counts for each of them.
    """

    def __init__(self, block: nn.Module, languages: Sequence[str]) -> None:
        self.languages = list(languages)
        # Their sizes alone: the counts outlive the block's module, whose weights are to be freed.
        self.experts = {path: mixture.count for path, mixture in experts_of(block).items()}
        self._members = torch.zeros(0, 0, dtype=torch.int64)
        self.tokens: dict[str, torch.Tensor] = {}

    def begin(self, spoken: Sequence[str]) -> None:
        """Tell the languages of the segments of the microbatch that comes next."""
        rows = [[int(one == language) for one in spoken] for language in self.languages]
        self._members = torch.tensor(rows, dtype=torch.int64)

    @contextmanager
    def counting(self, block: nn.Module) -> Iterator[None]:
        """Count while the block is called."""
        hooks = [
            mixture.register_forward_hook(lambda _, inputs, output, path=path: self._count(path, inputs))
            for path, mixture in experts_of(block).items()
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _count(self, path: str, inputs: tuple[torch.Tensor, ...]) -> None:
        index = next(one for one in inputs[1:] if not one.is_floating_point())
        members, experts = self._members.to(index.device), self.experts[path]
        chosen = index.reshape(members.shape[1], -1)
        counts = torch.zeros(len(chosen), experts, dtype=torch.int64, device=index.device)
        counts.scatter_add_(1, chosen, torch.ones_like(chosen))
        # By broadcasting: no device multiplies matrices of integers everywhere.
        routed = (members[:, :, None] * counts).sum(1)
        self.tokens[path] = self.tokens[path] + routed if path in self.tokens else routed
