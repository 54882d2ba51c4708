"""What the methods have in common that solve with a factor of the Hessian."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from mbs_ray.methods.columns import Columns
from mbs_ray.methods.factor import HessianFactor, hessian_factor
from mbs_ray.methods.field_checks import require_fraction, require_integer
from mbs_ray.methods.method_part import MethodPart
from mbs_ray.methods.moments import Moment, Statistic
from mbs_ray.methods.result import Compressed
from mbs_ray.methods.tensor_checks import check_tensors, required_moment


@dataclass(frozen=True, kw_only=True)
class Factored(MethodPart, ABC):
    """Base of the methods that solve with a factor of the Hessian: their fields and their preparation.

    damping: fraction of the Hessian's mean diagonal added to it, raised tenfold (up to 1) where it is too
    small for a factorization. refine: passes of coordinate descent after the solver, each of about its time.
    """

    damping: float = 0.01
    refine: int = 0

    def __post_init__(self) -> None:
        require_fraction(self.name, "damping", self.damping, one=True)
        require_integer(self.name, "refine", self.refine, 0, 100)

    def prepare(self, moment: Moment, name: str = "linear") -> HessianFactor:
        """Compute the factor of a full moment with tokens, which all linears with this input share."""
        return hessian_factor(required_moment(moment, self.name, Statistic.FULL, name), self.damping, name)

    def begin(
        self, weight: Tensor, moment: Moment | None, name: str, factor: HessianFactor | None
    ) -> tuple[Moment, Columns]:
        """Check the arguments of :meth:`compress`; return the moment and the columns to be solved.

        Raises InputError naming the linear.
        """
        self.check(*check_tensors(weight, moment, name), name)
        moment = required_moment(moment, self.name, Statistic.FULL, name)
        return moment, Columns.of(weight, factor or self.prepare(moment, name))

    @abstractmethod
    def compress(
        self, weight: Tensor, moment: Moment | None, name: str = "linear", factor: HessianFactor | None = None
    ) -> Compressed:
        """Compress a weight [rows, columns] by a full moment; factor: the result of prepare(moment), to share it."""
