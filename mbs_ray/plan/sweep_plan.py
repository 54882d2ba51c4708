"""The plan of a sweep file: on described nodes, on a live cluster, or on this machine."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from mbs_ray.cluster.layout import resolve_layout
from mbs_ray.plan.hardware import Hardware, live_cluster, this_machine
from mbs_ray.plan.make_plan import make_plan
from mbs_ray.plan.measured_rates import measure_rates
from mbs_ray.plan.planned_work import MetaDecoders, PlannedRun, PlannedWork, planned_runs
from mbs_ray.plan.rates import Rates, assumed_rates
from mbs_ray.plan.stage_plans import Plan
from mbs_ray.run.sweep_spec import SweepSpec


def plan_sweep(
    sweep: SweepSpec,
    hardware: Hardware | None,
    address: str | None,
    threads: int | None,
    rates: Mapping[str, float | None],
    measure: bool,
    out: Path | None,
) -> Plan:
    """Plan all runs of a sweep; ``hardware`` None: what the cluster at ``address``, or this machine, has free.

    ``rates`` may give ``forward`` (FLOP/s) and ``disk`` (bytes/s). Raises :class:`InputError` for errors that show
    without reading a weight.
    """
    if hardware is None:
        hardware = _asked(address, sweep.nvme_path)
    if sweep.device == "cpu":
        hardware = hardware.for_device("cpu")
    if out is not None:
        hardware = hardware.storing(out)
    specs = sweep.runs()
    works = planned_runs(specs, sweep.labels(specs), MetaDecoders(hardware.cuda))
    runs = [work for work in works if isinstance(work, PlannedRun)]
    layout = resolve_layout(
        None if sweep.layout.stages == "auto" else sweep.layout.stages,
        None if sweep.layout.replicas == "auto" else sweep.layout.replicas,
        actors=hardware.actors,
        runs=len(specs),
        blocks=min(work.decoder.blocks for work in works),
        microbatches=min(work.calibration.count for work in runs),
    )
    return make_plan(
        works,
        hardware,
        layout,
        _rates(works, hardware, layout.actors, threads, rates, measure, out),
        sweep.offload,
        sweep.nvme_path is not None or any(node.nvme for node in hardware.nodes),
    )


def _asked(address: str | None, nvme_path: Path | None) -> Hardware:
    if address is None:
        return Hardware((this_machine(nvme_path),))
    from mbs_ray.cluster.connect import connected

    with connected(address, 1):
        return live_cluster(nvme_path)


def _rates(
    works: list[PlannedWork],
    hardware: Hardware,
    actors: int,
    threads: int | None,
    given: Mapping[str, float | None],
    measure: bool,
    out: Path | None,
) -> Rates:
    each = threads or max(1, hardware.workers[0].cpus // -(-actors // len(hardware.workers)))
    rates = assumed_rates(hardware.device, hardware.cuda, each, works[0].decoder.compute_dtype)
    if measure:
        rates = measure_rates(works, rates, out or Path.cwd(), each)
    named = {key: value for key, value in given.items() if value is not None}
    return replace(rates.asked(**named), source="as given") if named else rates
