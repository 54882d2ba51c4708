"""What every column solver does once its columns are solved: refine them, and measure the linear."""

from torch import Tensor

from mbs_ray.methods.columns import Columns, transposed
from mbs_ray.methods.moments import Moment
from mbs_ray.methods.obs import undamped_loss
from mbs_ray.methods.refine import Solved, refine
from mbs_ray.methods.result import Compressed, measured


def solver_result(
    solved: Solved, columns: Columns, damped: Tensor, moment: Moment, passes: int, name: str
) -> Compressed:
    """Refine a solved linear by so many passes and measure it.

    columns: as solve_columns leaves them; overwritten. damped: the loss that it returns.
    """
    factor, change = columns.factor, columns.work
    dead = factor.dead_in_order()
    if passes:
        refine(solved, passes, columns, moment, damped)
        dead = factor.dead  # what refining leaves is in the columns' own order
    loss = undamped_loss(damped, change, dead, factor, moment)
    # Memory that the process has costs less than what the system would have to clear.
    final = transposed(solved.written, change if solved.written.dtype == change.dtype else None)
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
        codes=transposed(grids.codes),
        scales=grids.scales(),
        zeros=grids.zeros(),
        group_size=grids.group_size,
    )
