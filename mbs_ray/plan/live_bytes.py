"""Counter of the bytes of live tensors, at every operation; on the meta device it needs no memory itself."""

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd


class LiveBytes(TorchDispatchMode):
    """Mode that counts, while entered, the bytes of storages that operations made and somebody still holds.

    ``now`` is their sum, ``peak`` the largest so far. Tensors that existed before count as 0. Views share a storage,
    which counts once. Memory that a kernel allocates and frees before it ends is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.peak = 0
        self._known: dict[int, int] = {}

    def __torch_dispatch__(
        self, function: Any, types: Sequence[type], args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self._see((args, kwargs), made=False)
        if torch._C._dispatch_has_kernel_for_dispatch_key(function.name(), _COMPOSITE):
            # In inference mode an operation composed of others arrives whole, and would hide the tensors between them.
            with self:
                return function._op_dk(_COMPOSITE, *args, **(kwargs or {}))
        result = function(*args, **(kwargs or {}))
        self._see(result, made=True)
        return result

    def _see(self, values: Any, made: bool) -> None:
        for value in tree_leaves(values):
            if isinstance(value, torch.Tensor):
                self._count(value.untyped_storage(), made)

    def _count(self, storage: torch.UntypedStorage, made: bool) -> None:
        key = storage._cdata
        if key in self._known:
            return
        self._known[key] = storage.nbytes() if made else 0
        self.now += self._known[key]
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.now -= self._known.pop(key)
