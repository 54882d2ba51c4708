"""What a GPU would be asked for, counted without one: on the meta device, which computes shapes alone.

A tensor of another device among them is an error there as on a GPU.
"""

from typing import Any

import torch
from torch.fx.experimental import _config
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

META = torch.device("meta")
#: What a value read by the host is taken to be: a truth, no failure, any number.
_READS: dict[str, Any] = {"__bool__": True, "equal": True, "__int__": 0, "__index__": 0, "__float__": 0.5}
_WITHOUT_KERNEL = {
    "_reshape_alias", "_unsafe_view", "alias", "as_strided", "detach", "diagonal", "empty", "empty_like", "expand",
    "new_empty", "permute", "select", "slice", "split", "squeeze", "t", "transpose", "unbind", "unflatten",
    "unsqueeze", "view",
}  # fmt: skip


class HostReads(TorchFunctionMode):
    """Notes where the host reads what is on the device, for which it would have to wait, and answers something."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[str] = []

    def __enter__(self) -> "HostReads":
        self._before = _config.meta_nonzero_assume_all_nonzero
        _config.meta_nonzero_assume_all_nonzero = True
        super().__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        _config.meta_nonzero_assume_all_nonzero = self._before

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, one = getattr(func, "__name__", ""), args[0] if args else None
        if isinstance(one, torch.Tensor) and one.device == META:
            if name in _READS or name in ("item", "tolist", "cpu", "numpy"):
                self.reads.append(name)
            if name in _READS:
                return _READS[name]
            if name == "item":
                return one.dtype == torch.bool or 0.5
            if name == "tolist":
                return [1] * len(one)
            if name == "cpu":
                return torch.zeros_like(one, device="cpu")
        return func(*args, **(kwargs or {}))


class Launches(TorchDispatchMode):
    """Counts the operations that would start a kernel on a device; a mask as an index makes the host wait."""

    def __init__(self) -> None:
        super().__init__()
        self.count = self.waits = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func).split(".")[1]
        self.count += name not in _WITHOUT_KERNEL
        self.waits += name == "nonzero"
        return func(*args, **(kwargs or {}))
