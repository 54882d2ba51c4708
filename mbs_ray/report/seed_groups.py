"""Runs of a sweep that differ by their seed alone."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from mbs_ray.evaluation.metric_names import BITS_PER_BYTE, INCREASE, PERPLEXITY, Family
from mbs_ray.evaluation.seed_spread import SeedMean, seed_means
from mbs_ray.report.run_results import RunResults

#: What is averaged. The mean of the ends of intervals is no end of an interval, and counts are the same for all seeds.
_AVERAGED: tuple[Family, ...] = (PERPLEXITY, BITS_PER_BYTE, INCREASE)


@dataclass(frozen=True)
class SeedGroup:
    """Finished runs that differ by their seed alone, at least two, by seed; ``key`` tells the group from all others."""

    key: tuple[str, ...]
    runs: tuple[RunResults, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of its runs."""
        return tuple(run.facts.seed for run in self.runs)

    @property
    def name(self) -> str:
        """What its runs are called without their seeds."""
        return self.without_seed(self.runs[0].facts.label)

    @property
    def short_name(self) -> str:
        """Its name without model and method."""
        return self.without_seed(self.runs[0].short_name)

    def without_seed(self, name: str) -> str:
        """Return a name of the first run without its seed."""
        return name.replace(f"-seed{self.seeds[0]}", "", 1)

    @cached_property
    def means(self) -> dict[str, SeedMean]:
        """Perplexities, bits per byte and increases on every evaluation set, by the names of their metrics."""
        first = self.runs[0]
        beginnings = tuple(first.names(name).metric(family, "") for name in first.evaluation for family in _AVERAGED)
        means = seed_means([run.metrics or {} for run in self.runs])
        return {name: mean for name, mean in means.items() if name.startswith(beginnings)}


def seed_groups(runs: Iterable[RunResults]) -> list[SeedGroup]:
    """Find the groups among runs, in the order of their first ones; a run without its like is in none."""
    alike: dict[tuple[str, ...], dict[int, RunResults]] = {}
    for run in runs:
        if run.metrics is not None and run.seedless:
            texts = (part for evaluation in run.evaluation.items() for part in evaluation)
            alike.setdefault((run.seedless, *texts), {})[run.facts.seed] = run
    return [SeedGroup(key, tuple(own[seed] for seed in sorted(own))) for key, own in alike.items() if len(own) > 1]
