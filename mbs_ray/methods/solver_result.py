"""What every column solver does once its columns are solved: refine them, and measure the linear."""

from torch import Tensor

from mbs_ray.methods.factor import InverseFactor
from mbs_ray.methods.moments import Moment
from mbs_ray.methods.obs import damped_loss, undamped_loss
from mbs_ray.methods.refine import Solved, refine
from mbs_ray.methods.result import Compressed, measured


def solver_result(
    solved: Solved, errors: Tensor, factor: InverseFactor, moment: Moment, passes: int, name: str
) -> Compressed:
    """Refine a solved linear by so many passes and measure it.

    errors: [columns, rows] float32 as solve_columns leaves them, in the order of solving; overwritten.
    """
    damped = damped_loss(errors, factor)
    refine(solved, passes, factor, moment, damped, errors)
    final = solved.written.t().contiguous()
    loss = undamped_loss(damped, solved.weight, final, factor, moment)
    grids = solved.grids
    if grids is None:
        return measured(solved.weight, final, moment, name, loss=loss, damping=factor.damping)
    return measured(
        solved.weight,
        final,
        moment,
        name,
        loss=loss,
        damping=factor.damping,
        codes=grids.codes.t().contiguous(),
        scales=grids.scales(),
        zeros=grids.zeros(),
        group_size=grids.group_size,
    )
