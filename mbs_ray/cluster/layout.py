"""How many stages and replicas there are, and which stage owns which blocks: shards of about equal cost."""

from dataclasses import dataclass

from mbs_ray.errors import InputError


@dataclass(frozen=True)
class Layout:
    """``stages`` contiguous shards of the blocks, each held by ``replicas`` actors that share a run's segments.

    Actors are counted stage by stage: replica r of stage s is number ``s * replicas + r``.
    """

    stages: int = 1
    replicas: int = 1

    @property
    def actors(self) -> int:
        return self.stages * self.replicas

    def places(self) -> "list[StagePlace]":
        return [StagePlace(stage, replica, self) for stage in range(self.stages) for replica in range(self.replicas)]

    def __str__(self) -> str:
        return f"{self.stages} × {self.replicas} (stages × replicas)"


@dataclass(frozen=True)
class StagePlace:
    """Which actor of a layout one is; stage and replica count from 0."""

    stage: int
    replica: int
    layout: Layout

    @property
    def first(self) -> bool:
        return self.stage == 0

    @property
    def last(self) -> bool:
        return self.stage == self.layout.stages - 1

    def __str__(self) -> str:
        """As people count."""
        alone = self.layout.replicas == 1
        return f"stage {self.stage + 1}" if alone else f"stage {self.stage + 1} replica {self.replica + 1}"


def resolve_layout(
    stages: int | None, replicas: int | None, *, actors: int, runs: int, blocks: int, microbatches: int
) -> Layout:
    """What is asked for, with None settled so that up to ``actors`` (GPUs, or nodes of CPUs) are busy.

    Several runs keep several stages busy, one run in each; stages give a single run no speed-up, but replicas share
    its ``microbatches`` of calibration. So there are at most as many stages as runs, and replicas of a stage are as
    many as are left. Who asks for a number of stages alone gets one replica of each.
    """
    if stages is None:
        stages = max(1, min(actors // (replicas or 1), runs, blocks))
        replicas = replicas or max(1, min(actors // stages, microbatches))
    replicas = replicas or 1
    if replicas > microbatches:
        raise InputError(
            f"layout.replicas: {replicas} replicas want a microbatch of calibration each, a run has {microbatches}; "
            "ask for fewer replicas or a smaller microbatch"
        )
    return Layout(stages, replicas)
