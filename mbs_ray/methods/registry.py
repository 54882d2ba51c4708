"""Methods by name: from a line of YAML to a method and back."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

from torch import Tensor

from mbs_ray.errors import InputError
from mbs_ray.methods.gptq import GPTQ
from mbs_ray.methods.magnitude import Magnitude
from mbs_ray.methods.moments import Moment, Statistic
from mbs_ray.methods.obc import OBC, OBQ
from mbs_ray.methods.result import Compressed
from mbs_ray.methods.rtn import RTN
from mbs_ray.methods.sparsegpt import SparseGPT
from mbs_ray.methods.sparsegpt_gptq import SparseGPTQ
from mbs_ray.methods.wanda import Wanda


class Method(Protocol):
    """A frozen dataclass that is its own configuration."""

    name: ClassVar[str]
    statistic: ClassVar[Statistic]

    @property
    def label(self) -> str:
        """Short name, used in run names."""

    def check(self, rows: int, columns: int, name: str) -> None:
        """Raise InputError, naming the linear, if the method cannot apply to this shape."""

    def compress(self, weight: Tensor, moment: Moment | None, name: str = "linear") -> Compressed:
        """Compress a weight [rows, columns], which is not modified.

        Methods that are Factored also take the factor that their prepare(moment) returned, to share it.
        """


METHODS: dict[str, type[Any]] = {
    cls.name: cls for cls in (Magnitude, RTN, Wanda, SparseGPT, GPTQ, SparseGPTQ, OBC, OBQ)
}


def build_method(spec: str | Mapping[str, Any]) -> Method:
    """Build a method from a name ("wanda") or a mapping ({"name": "sparsegpt", "sparsity": 0.5})."""
    options = {"name": spec} if isinstance(spec, str) else spec
    if not isinstance(options, Mapping) or "name" not in options:
        raise InputError(f"method: give a name or a mapping with a name, got {spec!r}")
    fields = dict(options)
    name = fields.pop("name")
    if not isinstance(name, str) or name not in METHODS:
        raise InputError(f"method: unknown name {name!r}; choose from {', '.join(METHODS)}")
    known = [field.name for field in dataclasses.fields(METHODS[name])]
    for key in fields:
        if key not in known:
            raise InputError(f"method: {name} has no field {key!r}; its fields are {', '.join(known)}")
    method: Method = METHODS[name](**fields)
    return method


def method_spec(method: Method) -> dict[str, Any]:
    """Return the mapping that builds this method again, all fields written out; fit for JSON and YAML."""
    return {"name": method.name, **dataclasses.asdict(method)}  # type: ignore[call-overload]
