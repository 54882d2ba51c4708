"""The plan of what a sweep has still to do, said and checked before it starts."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from mbs_ray.cluster.offload import Offload
from mbs_ray.cluster.resources import Resources
from mbs_ray.plan.hardware import Hardware
from mbs_ray.plan.make_plan import make_plan, refuse, reserved_memory
from mbs_ray.plan.plan_view import host_budget, summary
from mbs_ray.plan.planned_work import MetaDecoders, planned_runs
from mbs_ray.plan.rates import assumed_rates
from mbs_ray.run.prepare import PreparedRun
from mbs_ray.run.signature import finished_result
from mbs_ray.run.sweep_folders import SweepFolders


def checked_plan(
    offload: Offload,
    runs: Sequence[PreparedRun],
    folders: SweepFolders,
    resources: Resources,
    hardware: Hardware,
    say: Callable[[str], None],
    force: bool,
) -> Offload:
    """Print the plan of the runs that are not finished, and return ``offload`` with the memory that the plan reserves.

    Raises :class:`InputError` where the plan does not fit, unless ``force`` is given.
    """
    todo = [run for run in runs if finished_result(folders, run) is None]
    if not todo:
        return offload
    hardware = hardware.storing(folders.out).for_device(resources.numerics.device)
    works = planned_runs([run.spec for run in todo], [run.label for run in todo], MetaDecoders(hardware.cuda))
    rates = assumed_rates(hardware.device, hardware.cuda, resources.numerics.threads, works[0].decoder.compute_dtype)
    plan = make_plan(works, hardware, resources.layout, rates, offload.asked, offload.nvme_path is not None)
    say(summary(plan))
    say(host_budget(plan))
    if force:
        for problem in plan.problems:
            say(f"forced: {problem}")
    else:
        refuse(plan)
    return replace(offload, reserved=reserved_memory(plan))
