"""A plan as text and tables for the terminal."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from rich.table import Table

from mbs_ray.cluster.activations.host_memory import RESERVED_SHARE
from mbs_ray.plan.make_plan import PROCESS_BYTES
from mbs_ray.plan.stage_memory import Phase, head_memory
from mbs_ray.plan.stage_plans import Plan, StagePlan
from mbs_ray.plan.stage_time import head_operations, head_seconds
from mbs_ray.plan.units import duration, format_gib, format_operations

#: Parts in the order in which they are shown; others follow.
_ORDER = (
    "block",
    "moments",
    "factor",
    "solver",
    "weight",
    "forward",
    "masks",
    "microbatch",
    "copies",
    "head",
    "logits",
)


def summary(plan: Plan) -> str:
    """Summarise the plan in one line, for the start of every job."""
    device = max((stage.device for stage in plan.stages), default=0)
    host = max((stage.host for stage in plan.stages), default=0)
    memory = (
        f"{format_gib(device)} of a device and {format_gib(host)} of host memory"
        if plan.hardware.cuda
        else format_gib(host)
    )
    stage, part = plan.bottleneck
    return (
        f"plan: a stage needs {memory}, results {format_gib(plan.storage)} of disk, "
        f"stages work about {duration(plan.wall)} ({plan.rates.source}), stage {stage + 1} longest, on {part}"
    )


def host_budget(plan: Plan) -> str:
    """Say in one line how much host memory each stage of the fullest node has, and how that comes about."""
    nodes = Counter(plan.hardware.node_of_actor(plan.layout.actors))
    index = min(nodes, key=lambda one: plan.hardware.workers[one].host_room / nodes[one])
    node, sharing = plan.hardware.workers[index], nodes[index]
    used = f" − {format_gib(node.host_used)} in use" if node.host_used else ""
    room = f"{format_gib(node.host_memory)} × {node.kill_share - RESERVED_SHARE:.0%}{used}"
    shared = f"({room}) ÷ {sharing} stages" if sharing > 1 else room
    return (
        f"host memory: a stage may use {format_gib(max(0, node.host_room // sharing - PROCESS_BYTES))} = {shared} − "
        f"{format_gib(PROCESS_BYTES)} of processes; Ray kills above {node.kill_share:.0%}"
    )


def tables(plan: Plan) -> list[Table]:
    """Build tables: memory of the stage that needs most, every stage in a line, time by part, and the head."""
    largest = max(plan.stages, key=lambda one: (one.device, one.host))
    shown = [_memory(largest, "device")] if plan.hardware.cuda else []
    return [*shown, _memory(largest, "host"), _stages(plan), _time(plan), *_head(plan)]


def _memory(stage: StagePlan, kind: str) -> Table:
    phases = [phase for phase in stage.phases if _parts(phase, kind)]
    table = Table(title=f"{kind} memory of stage {stage.stage + 1}, at the peak of each phase", title_justify="left")
    table.add_column("part")
    for phase in phases:
        table.add_column(phase.name, justify="right")
    names = dict.fromkeys(name for phase in phases for name, size in _parts(phase, kind).items() if size)
    for name in sorted(names, key=_position):
        table.add_row(name, *(format_gib(size) if (size := _parts(phase, kind).get(name)) else "" for phase in phases))
    table.add_section()
    table.add_row("together", *(format_gib(sum(_parts(phase, kind).values())) for phase in phases))
    return table


def _parts(phase: Phase, kind: str) -> Mapping[str, int]:
    return phase.device if kind == "device" else phase.host


def _position(name: str) -> tuple[int, str]:
    return (_ORDER.index(name) if name in _ORDER else len(_ORDER), name)


def _stages(plan: Plan) -> Table:
    table = Table(title=f"layout {plan.layout}", title_justify="left")
    table.add_column("stage")
    for column in ("blocks", "activations in", "device", "host", "disk", "works for"):
        table.add_column(column, justify="right")
    for stage in plan.stages:
        seconds = sum(run[stage.stage].total for run in plan.seconds)
        tier = {"none": "device memory", "host": "host memory", "nvme": "disk"}[stage.tier]
        blocks = f"{stage.blocks[0]}–{stage.blocks[-1]}"
        device = format_gib(stage.device) if plan.hardware.cuda else "–"
        disk = format_gib(stage.nvme) if stage.nvme else "–"
        host, number = format_gib(stage.host), str(stage.stage + 1)
        table.add_row(number, blocks, tier, device, host, disk, duration(seconds))
    return table


def _time(plan: Plan) -> Table:
    """Show the time of the stage that works longest, run by run; equal runs share a line."""
    stage, _ = plan.bottleneck
    table = Table(title=f"time of stage {stage + 1} ({plan.rates.source})", title_justify="left")
    table.add_column("run")
    parts = list(dict.fromkeys(part for run in plan.seconds for part in run[stage].parts))
    for column in (*parts, "together"):
        table.add_column(column, justify="right")
    lines: dict[tuple[str, ...], list[str]] = {}
    for work, run in zip(plan.works, plan.seconds, strict=True):
        cells = [duration(run[stage].parts[part]) if part in run[stage].parts else "" for part in parts]
        lines.setdefault((*cells, duration(run[stage].total)), []).append(work.label)
    for cells_, labels in lines.items():
        table.add_row(_named(labels), *cells_)
    return table


def _head(plan: Plan) -> list[Table]:
    """Show what the head is of the last stage's work, where anything is evaluated; equal runs share a line."""
    table = Table(title=f"head, on stage {len(plan.stages)}", title_justify="left")
    table.add_column("run")
    for column in ("scored tokens", "operations", "time", "rows of the head", "logits at once"):
        table.add_column(column, justify="right")
    lines: dict[tuple[str, ...], list[str]] = {}
    for work in plan.works:
        own = work.of_replica(plan.layout.replicas)
        if own.evaluation:
            memory = head_memory(own).device
            own_cells = (
                f"{sum(one.tokens for one in own.evaluation):,}",
                format_operations(head_operations(own)),
                duration(head_seconds(own, plan.rates, plan.hardware.cuda)),
                format_gib(memory["head"]),
                format_gib(memory["logits"]),
            )
            lines.setdefault(own_cells, []).append(work.label)
    for cells, labels in lines.items():
        table.add_row(_named(labels), *cells)
    return [table] if lines else []


def _named(labels: Sequence[str]) -> str:
    return labels[0] if len(labels) == 1 else f"{labels[0]} and {len(labels) - 1} more"


def closing_lines(plan: Plan) -> Iterable[str]:
    """Yield the lines below the tables."""
    stage, part = plan.bottleneck
    yield f"together: stages work about {duration(plan.wall)}; stage {stage + 1} works longest, most of it on {part}"
    yield host_budget(plan)
    yield f"results: {format_gib(plan.storage)} of disk" + (
        f", {format_gib(plan.hardware.storage)} are free" if plan.hardware.storage is not None else ""
    )
    if plan.object_store:
        yield f"object store: {format_gib(plan.object_store)} between stages at most"
    yield from (f"does not fit: {problem}" for problem in plan.problems)
