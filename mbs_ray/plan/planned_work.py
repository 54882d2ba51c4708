"""The work of a run, as far as the memory and time of stages depend on it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from mbs_ray.languages.distribution import parse_languages
from mbs_ray.languages.sampling_registry import distribution_for
from mbs_ray.languages.samplings import Adaptive
from mbs_ray.methods import Method, Statistic, with_amount
from mbs_ray.model.decoder import Decoder
from mbs_ray.plan.meta_checkpoint import MetaDecoder, meta_checkpoint
from mbs_ray.run.microbatch import settled_microbatch
from mbs_ray.run.mixture_checks import check_mixtures
from mbs_ray.run.modes import Budget, DenseFit
from mbs_ray.run.spec import RunSpec


@dataclass(frozen=True)
class TokenBatches:
    """Segments of one length that go through the blocks ``microbatch`` at a time."""

    segments: int
    length: int
    microbatch: int

    @property
    def tokens(self) -> int:
        return self.segments * self.length

    @property
    def count(self) -> int:
        """Number of microbatches."""
        return -(-self.segments // self.microbatch)

    @property
    def rows(self) -> int:
        """Number of segments in the largest microbatch."""
        return min(self.segments, self.microbatch)

    @property
    def shapes(self) -> set[int]:
        """Sizes of the microbatches in segments: the last one may be smaller."""
        return {self.rows, self.segments % self.microbatch or self.rows}

    def one_by_one(self) -> "TokenBatches":
        """Return the same with one segment in a forward."""
        return replace(self, microbatch=1)

    def of_replica(self, replicas: int) -> "TokenBatches":
        """Return what the replica with the most segments takes."""
        return TokenBatches(
            min(self.segments, -(-self.count // replicas) * self.microbatch), self.length, self.microbatch
        )


#: Begins the labels of trials, by which a budget is dealt out.
TRIALS = "trials of"


@dataclass(frozen=True)
class PlannedScore:
    """The evaluation of a dense model; ``decoder`` is on the meta device."""

    label: str
    decoder: Decoder
    evaluation: tuple[TokenBatches, ...]

    @property
    def batches(self) -> tuple[TokenBatches, ...]:
        return self.evaluation

    def of_replica(self, replicas: int) -> "PlannedScore":
        """Return the share of the replica with the most."""
        return replace(self, evaluation=tuple(one.of_replica(replicas) for one in self.evaluation))

    def one_by_one(self) -> "PlannedScore":
        """Return the same with one segment in a forward."""
        return replace(self, evaluation=tuple(one.one_by_one() for one in self.evaluation))


@dataclass(frozen=True)
class PlannedRun:
    """The compression of a model and its evaluation; ``decoder`` is on the meta device.

    ``routed``: the part of the calibration set that first goes through the dense model, to count what experts receive.
    ``solvings``: how many times all linears are solved at most; a search for weights solves them once per trial.
    """

    label: str
    decoder: Decoder
    method: Method
    calibration: TokenBatches
    evaluation: tuple[TokenBatches, ...]
    per_language: bool = False
    true_sequential: bool = False
    keep: str = "checkpoint"
    solvings: int = 1
    fit: DenseFit | None = None
    trials: int = 0
    """How many of the solvings are trials, whose losses are measured by the full moments of each language."""
    languages: int = 0
    expert_tokens: float = 4.0
    routed: TokenBatches | None = None

    @property
    def statistic(self) -> Statistic:
        """Statistic of the moments that are collected: what the method needs, or what fitting or measuring does."""
        return self.method.statistic if self.fit is None and not self.trials else Statistic.FULL

    @property
    def chooses_strength(self) -> bool:
        """Whether moments and drifts of held-out segments are collected beside those of all."""
        return self.fit is not None and self.fit.strength == "auto"

    @property
    def batches(self) -> tuple[TokenBatches, ...]:
        """Texts that go through the blocks; with the dense model's states beside the run's, calibration goes twice."""
        return (self.calibration,) * (1 if self.fit is None else 2) + self.evaluation

    def of_replica(self, replicas: int) -> "PlannedRun":
        """Return the share of the replica with the most."""
        evaluation = tuple(one.of_replica(replicas) for one in self.evaluation)
        routed = self.routed and self.routed.of_replica(replicas)
        return replace(self, calibration=self.calibration.of_replica(replicas), evaluation=evaluation, routed=routed)

    def one_by_one(self) -> "PlannedRun":
        """Return the same with one segment in a forward."""
        evaluation = tuple(one.one_by_one() for one in self.evaluation)
        routed = self.routed and self.routed.one_by_one()
        return replace(self, calibration=self.calibration.one_by_one(), evaluation=evaluation, routed=routed)


PlannedWork = PlannedRun | PlannedScore


class MetaDecoders:
    """Decoders without weights, each built once."""

    def __init__(self, cuda: bool) -> None:
        self.device = "cuda" if cuda else "cpu"
        self._built: dict[tuple[str, str | None, str], Decoder] = {}

    def decoder(self, model: str, revision: str | None, compute_dtype: str) -> Decoder:
        key = model, revision, compute_dtype
        if key not in self._built:
            checkpoint = meta_checkpoint(model, revision)
            auto = checkpoint.dtype if self.device == "cuda" else torch.float32
            dtype = auto if compute_dtype == "auto" else getattr(torch, compute_dtype)
            self._built[key] = MetaDecoder(checkpoint, dtype)
        return self._built[key]


def planned_runs(specs: Sequence[RunSpec], labels: Sequence[str], outlines: MetaDecoders) -> list[PlannedWork]:
    """List the work of every run, after that of every dense model that runs are compared with.

    Evaluation sets count with the most segments that they may have; those that use all their text count as nothing. The
    trials of a budget are listed as a run of their own, and for every run, though runs share them.
    """
    works: dict[str, PlannedWork] = {}
    for spec, label in zip(specs, labels, strict=True):
        decoder = outlines.decoder(spec.model, spec.revision, spec.compute_dtype)
        check_mixtures(spec, decoder)
        distribution = distribution_for(spec.sampling, spec.model, spec.distribution, spec.revision)
        codes = parse_languages(spec.languages, distribution)
        languages, segments = len(codes), spec.segments
        if spec.statistics is not None:
            # As if every run collected its own moments: what runs share depends on all of them.
            segments = spec.statistics.segments_per_language * len(spec.sampling.weights(distribution, codes))
        microbatch = settled_microbatch(spec.microbatch, spec.sequence_length, outlines.device, decoder)
        calibration = routed = TokenBatches(segments, spec.sequence_length, microbatch)
        if further := _further_segments(spec):
            calibration = replace(calibration, segments=segments + further)
        if spec.budget is not None and spec.budget.tries:
            name = f"{TRIALS} {label}"
            works[name] = _trials(
                name, decoder, spec, spec.budget, len(spec.sampling.weights(distribution, codes)), microbatch
            )
        evaluation = tuple(
            TokenBatches(one.segments * languages, one.sequence_length or spec.sequence_length, microbatch)
            for one in spec.evaluation.values()
            if one.segments is not None
        )
        if evaluation:
            name = f"dense-{Path(spec.model).name}"
            works.setdefault(name, PlannedScore(name, decoder, evaluation))
        trials = spec.sampling.trials if isinstance(spec.sampling, Adaptive) else 0
        works[label] = PlannedRun(
            label,
            decoder,
            _at_most(spec),
            calibration,
            evaluation,
            spec.per_language,
            spec.true_sequential,
            spec.keep,
            1 + trials,
            spec.fit_to,
            trials,
            languages,
            spec.expert_tokens,
            routed if further else None,
        )
    return sorted(works.values(), key=lambda work: isinstance(work, PlannedRun))


def _further_segments(spec: RunSpec) -> int:
    """Bound the segments that are drawn for starved experts; methods that see no text get none."""
    return 0 if spec.method.statistic is Statistic.NONE else spec.expert_segments


def _at_most(spec: RunSpec) -> Method:
    """Return the method of a run; where bits are dealt out, with the whole bits above their average."""
    if spec.budget is None or spec.budget.bits is None:
        return spec.method
    return with_amount(spec.method, "bits", math.ceil(spec.budget.bits))


def _trials(name: str, decoder: Decoder, spec: RunSpec, budget: Budget, languages: int, microbatch: int) -> PlannedRun:
    """Plan the trials of a budget: moments of dense text, and all linears solved with every amount."""
    each = budget.segments_per_language if spec.statistics is None else spec.statistics.segments_per_language
    calibration = TokenBatches(each * languages, spec.sequence_length, microbatch)
    tried = len(budget.tried(spec.method))
    return PlannedRun(
        name, decoder, spec.method, calibration, (), keep="metrics", solvings=tried, trials=tried, languages=languages
    )
