"""The plan of a sweep: what each stage needs, whether that fits, how long it takes, and what would fit instead."""

from collections.abc import Mapping, Sequence

from mbs_ray.cluster.activations.aio import padded
from mbs_ray.cluster.activations.host_memory import pinned_size
from mbs_ray.cluster.activations.memory_tier import COPIES
from mbs_ray.cluster.activations.slot_file import BUFFERS
from mbs_ray.cluster.bounds import CREDITS, RUNS_HELD, TierName
from mbs_ray.cluster.layout import Layout
from mbs_ray.cluster.sharding import block_costs, head_cost, shard_blocks
from mbs_ray.errors import InputError
from mbs_ray.methods import Statistic
from mbs_ray.plan.hardware import Hardware
from mbs_ray.plan.planned_work import PlannedRun, PlannedScore, PlannedWork
from mbs_ray.plan.rates import Rates
from mbs_ray.plan.results_size import results_bytes
from mbs_ray.plan.stage_memory import Phase, hidden_bytes, phases_of
from mbs_ray.plan.stage_plans import Plan, StagePlan
from mbs_ray.plan.stage_time import stage_seconds
from mbs_ray.plan.units import format_gib

#: A stage's process before its first model: interpreter, torch, transformers, Ray (317 MiB of an import, and threads);
#: and what the driver and Ray's own processes grow by between the plan and the first block (about 260 MiB).
PROCESS_BYTES = 704 * 2**20
#: Libraries of a stage's process once the first model is loaded, whatever its size.
LIBRARIES_BYTES = 64 * 2**20


def make_plan(
    works: Sequence[PlannedWork],
    hardware: Hardware,
    layout: Layout,
    rates: Rates,
    offload: str = "auto",
    nvme: bool = True,
) -> Plan:
    """Plan runs on a layout. ``offload``: the tier asked for; ``nvme``: whether a folder on a disk was given."""
    cuda = hardware.cuda
    shares = [work.of_replica(layout.replicas) for work in works]
    shards = [_shards(work, layout.stages) for work in works]
    node_of_actor = hardware.node_of_actor(layout.actors)
    stages: list[StagePlan] = []
    lacks: dict[str, list[int]] = {}
    for stage in range(layout.stages):
        last = stage == layout.stages - 1
        # Where the replicas' nodes differ in load, the one with the most actors decides: they share its host memory and
        # disk. A phase needs its peak over all runs. Of the tiers, the first that fits is taken; if none does, what
        # the last one lacks is reported.
        own = [node_of_actor[stage * layout.replicas + replica] for replica in range(layout.replicas)]
        sharing = max(node_of_actor.count(home) for home in own)
        node = hardware.workers[max(own, key=node_of_actor.count)]
        phases: dict[str, Phase] = {}
        for work, shard in zip(shares, shards, strict=True):
            for phase in phases_of(work, shard[stage], last):
                phase = phase if cuda else phase.on_cpu()
                phases[phase.name] = _larger(phases.get(phase.name), phase)
        held = RUNS_HELD if layout.stages > 1 else 1
        plans = [
            _with_tier(stage, shards[-1][stage], tier, list(phases.values()), shares, held, cuda, layout.stages > 1)
            for tier in _tiers(offload, nvme and node.nvme > 0, cuda)
        ]
        host = node.host_room // sharing - PROCESS_BYTES
        lacking = [_lacking(plan, node.device_room, host, node.nvme // sharing) for plan in plans]
        fitting = next((index for index, lacks in enumerate(lacking) if not lacks), len(plans) - 1)
        stages.append(plans[fitting])
        for lack in lacking[fitting]:
            lacks.setdefault(lack, []).append(stage + 1)
    problems = [f"stage {own[0]}{_others(own[1:])} needs {lack}" for lack, own in lacks.items()]
    storage = results_bytes(works, layout.stages)
    if hardware.storage is not None and storage > hardware.storage:
        problems.append(
            f"results need {format_gib(storage)}, {format_gib(hardware.storage)} are free where they go; "
            "give another --out, or keep: metrics for runs whose checkpoints nobody needs"
        )
    seconds = [
        [
            stage_seconds(
                work, shard[one.stage], one.stage == layout.stages - 1, rates, one.tier, cuda, layout.replicas
            )
            for one in stages
        ]
        for work, shard in zip(shares, shards, strict=True)
    ]
    under_way = _object_store(shares, layout)
    return Plan(list(works), hardware, layout, rates, stages, seconds, storage, under_way, problems, offload, nvme)


def fitting_plan(plan: Plan) -> Plan | None:
    """Find the fastest plan that fits, for the same runs and hardware, over other layouts and smaller microbatches.

    Microbatches become single segments only if no layout fits otherwise. None if nothing fits.
    """
    actors = plan.hardware.actors
    blocks = min(work.decoder.blocks for work in plan.works)
    fitting: list[Plan] = []
    for smaller in (False, True):
        works = [work.one_by_one() if smaller else work for work in plan.works]
        for stages in range(min(actors, blocks), 0, -1):
            for tier in dict.fromkeys([plan.offload, "auto"]):
                other = make_plan(works, plan.hardware, Layout(stages, 1), plan.rates, tier, plan.nvme)
                if not other.problems:
                    fitting.append(other)
        if fitting:
            return min(fitting, key=lambda one: one.wall)
    return None


def reserved_memory(plan: Plan) -> tuple[int, int]:
    """Return the most device and host memory that a stage needs without its activations, in bytes."""
    phases = [phase for stage in plan.stages for phase in stage.phases]
    return max(_besides(phase.device) for phase in phases), max(_besides(phase.host) for phase in phases)


def _besides(parts: Mapping[str, int]) -> int:
    return sum(size for part, size in parts.items() if part != "activations")


def _shards(work: PlannedWork, stages: int) -> list[range]:
    evaluating = sum(one.tokens for one in work.evaluation)
    match work:
        case PlannedRun(calibration=calibration):
            measuring = 2 * calibration.tokens * (work.per_language + (work.fit is not None))
            costs = block_costs(work.decoder, work.statistic, calibration.tokens, evaluating + measuring)
        case PlannedScore():
            costs = block_costs(work.decoder, Statistic.NONE, 0, evaluating)
    return shard_blocks(costs, head_cost(work.decoder, evaluating), stages)


def _tiers(offload: str, nvme: bool, cuda: bool) -> list[TierName]:
    """List the tiers to try, in order; never empty."""
    if offload != "auto":
        return [offload]  # type: ignore[list-item]
    memory: list[TierName] = ["none", "host"] if cuda else ["host"]
    return [*memory, "nvme"] if nvme else memory


def _with_tier(
    stage: int,
    blocks: range,
    tier: TierName,
    phases: list[Phase],
    works: Sequence[PlannedWork],
    held: int,
    cuda: bool,
    handing_over: bool,
) -> StagePlan:
    sizes = sorted((_activations(work) for work in works), reverse=True)[:held]
    pinned = sorted((_activations(work, pinned=True) for work in works), reverse=True)[:held]
    microbatch = max(_microbatch(work) for work in works)
    device: dict[str, int] = {}
    host = {"libraries": LIBRARIES_BYTES}
    if handing_over:
        host["hand-over"] = CREDITS * microbatch
    if tier == "none" and cuda:
        device["activations"] = sum(sizes)
    elif tier == "nvme":
        host["buffers of the disk"] = held * BUFFERS * padded(microbatch)
    else:
        host["activations"] = sum(pinned if cuda else sizes)
        if cuda:
            device["copies"] = COPIES * microbatch
    whole = [Phase(one.name, {**one.device, **device}, {**one.host, **host}) for one in phases]
    return StagePlan(stage, blocks, tier, whole, sum(sizes) if tier == "nvme" else 0)


def _lacking(plan: StagePlan, device: int, host: int, nvme: int) -> list[str]:
    """List what a stage needs more of than there is; ``host`` and ``nvme`` are its share of its node's."""
    lacks = []
    for what, needed, there in (
        ("device memory", plan.device, device),
        ("host memory", plan.host, host),
        ("disk for activations", plan.nvme, nvme),
    ):
        if needed > there:
            part = _main_part(plan, what)
            lacks.append(f"{format_gib(needed)} of {what}{part}, {format_gib(max(there, 0))} are there")
    return lacks


def _others(stages: Sequence[int]) -> str:
    return f" (and {', '.join(map(str, stages))})" if stages else ""


def _main_part(plan: StagePlan, what: str) -> str:
    kind = {"device memory": "device", "host memory": "host"}.get(what)
    if kind is None:
        return ""
    phase = max(plan.phases, key=lambda one: sum(getattr(one, kind).values()))
    part, size = max(getattr(phase, kind).items(), key=lambda item: item[1])
    return f" ({phase.name}: {part} {format_gib(size)})"


def _activations(work: PlannedWork, pinned: bool = False) -> int:
    """Compute the bytes of all microbatches of a run; pinned memory comes in powers of two."""
    total = 0
    for one in work.batches:
        size = hidden_bytes(work.decoder, one, one.rows)
        total += one.count * pinned_size(size) if pinned else hidden_bytes(work.decoder, one, one.segments)
    return total


def _microbatch(work: PlannedWork) -> int:
    return max(hidden_bytes(work.decoder, one, one.rows) for one in work.batches)


def _object_store(works: Sequence[PlannedWork], layout: Layout) -> int:
    """Bound the bytes of hidden states in transit between stages: never more than the credits of every sender."""
    if layout.stages == 1:
        return 0
    return (layout.stages - 1) * layout.replicas * CREDITS * max(_microbatch(work) for work in works)


def _larger(before: Phase | None, phase: Phase) -> Phase:
    if before is None:
        return phase
    sizes = [sum(one.device.values()) + sum(one.host.values()) for one in (before, phase)]
    return before if sizes[0] >= sizes[1] else phase


def refuse(plan: Plan) -> None:
    """Raise :class:`InputError` if the plan does not fit, with a layout that does."""
    if not plan.problems:
        return
    raise InputError(f"{'; '.join(plan.problems)}; {advice(plan)} (mbs plan shows more; --force starts anyway)")


def advice(plan: Plan) -> str:
    """Suggest what to ask for instead of a plan that does not fit."""
    other = fitting_plan(plan)
    if other is None:
        return "no layout of this cluster fits; take fewer segments, more nodes or a disk (nvme_path)"
    rows = max(one.microbatch for one in other.works[-1].batches)
    tiers = "/".join(dict.fromkeys(one.tier for one in other.stages))
    return f"it fits with layout {{stages: {other.layout.stages}}}, offload: {tiers}, microbatch: {rows}"
