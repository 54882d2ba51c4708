"""A plan: memory, time and disk of every stage, and the problems that refuse a sweep."""

from dataclasses import dataclass

from mbs_ray.cluster.bounds import TierName
from mbs_ray.cluster.layout import Layout
from mbs_ray.plan.hardware import Hardware
from mbs_ray.plan.planned_work import PlannedWork
from mbs_ray.plan.rates import Rates
from mbs_ray.plan.stage_memory import Phase
from mbs_ray.plan.stage_time import Seconds


@dataclass(frozen=True)
class StagePlan:
    """Needs of one stage of a layout, for each of its replicas; bytes."""

    stage: int
    blocks: range
    tier: TierName
    phases: list[Phase]
    """The largest of each kind over all runs, activations included."""
    nvme: int

    @property
    def device(self) -> int:
        return max((sum(phase.device.values()) for phase in self.phases), default=0)

    @property
    def host(self) -> int:
        return max((sum(phase.host.values()) for phase in self.phases), default=0)


@dataclass(frozen=True)
class Plan:
    """Needs of a sweep on a layout. ``problems`` say what does not fit, one line each."""

    works: list[PlannedWork]
    hardware: Hardware
    layout: Layout
    rates: Rates
    stages: list[StagePlan]
    seconds: list[list[Seconds]]
    """By run and stage."""
    storage: int
    object_store: int
    problems: list[str]
    offload: str
    """The tier that was asked for."""
    nvme: bool
    """Whether there is a folder on a disk."""

    @property
    def wall(self) -> float:
        """Seconds until the last run has left the last stage: a stage takes one run after the other."""
        # A run starts in a stage once it has left the stage before and the stage has finished the run before.
        free = [0.0] * len(self.stages)
        for run in self.seconds:
            done = 0.0
            for stage, seconds in enumerate(run):
                done = free[stage] = max(done, free[stage]) + seconds.total
        return max(free, default=0.0)

    @property
    def bottleneck(self) -> tuple[int, str]:
        """The stage that works longest, and the part of its work that takes most."""
        totals = [sum(run[stage].total for run in self.seconds) for stage in range(len(self.stages))]
        stage = totals.index(max(totals))
        return stage, max(self.parts(stage).items(), key=lambda part: part[1])[0]

    def parts(self, stage: int) -> dict[str, float]:
        """Sum the seconds of a stage by part, over all runs."""
        parts: dict[str, float] = {}
        for run in self.seconds:
            for part, seconds in run[stage].parts.items():
                parts[part] = parts.get(part, 0.0) + seconds
        return parts
