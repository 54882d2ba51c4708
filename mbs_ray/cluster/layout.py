"""The layout of actors: how many stages and replicas there are, and which of them an actor is."""

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
        """Number of actors of all stages."""
        return self.stages * self.replicas

    def places(self) -> "list[StagePlace]":
        """List the places of all actors, stage by stage."""
        return [StagePlace(stage, replica, self) for stage in range(self.stages) for replica in range(self.replicas)]

    def __str__(self) -> str:
        return f"{self.stages} × {self.replicas} (stages × replicas)"


@dataclass(frozen=True)
class StagePlace:
    """The position of an actor in a layout; stage and replica count from 0."""

    stage: int
    replica: int
    layout: Layout

    @property
    def first(self) -> bool:
        """Whether the stage is the first, which embeds."""
        return self.stage == 0

    @property
    def last(self) -> bool:
        """Whether the stage is the last, which scores."""
        return self.stage == self.layout.stages - 1

    def __str__(self) -> str:
        """Name the place with numbers from 1, e.g. ``stage 2 replica 1``."""
        alone = self.layout.replicas == 1
        return f"stage {self.stage + 1}" if alone else f"stage {self.stage + 1} replica {self.replica + 1}"


def resolve_layout(
    stages: int | None, replicas: int | None, *, actors: int, runs: int, blocks: int, microbatches: int
) -> Layout:
    """Resolve what is None so that up to ``actors`` (GPUs, or nodes of CPUs) are busy.

    Several runs keep several stages busy, one run in each; stages give a single run no speed-up, but replicas share
    its ``microbatches`` of calibration. So there are at most as many stages as runs, and the remaining actors become
    replicas. If only ``stages`` is given, ``replicas`` is 1. Raises :class:`InputError` where a replica would have no
    microbatch.
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
