"""What a run asks of the stages, as far as memory and time go."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from mbs_ray.languages.distribution import parse_languages
from mbs_ray.languages.sampling_registry import distribution_for
from mbs_ray.languages.samplings import Adaptive
from mbs_ray.methods import Method
from mbs_ray.model.decoder import Decoder
from mbs_ray.plan.meta_checkpoint import MetaDecoder, meta_checkpoint
from mbs_ray.run.microbatch import settled_microbatch
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
        """Microbatches."""
        return -(-self.segments // self.microbatch)

    @property
    def rows(self) -> int:
        """Segments in the largest microbatch."""
        return min(self.segments, self.microbatch)

    @property
    def shapes(self) -> set[int]:
        """Numbers of segments of its microbatches: the last may be a smaller one."""
        return {self.rows, self.segments % self.microbatch or self.rows}

    def of_replica(self, replicas: int) -> "TokenBatches":
        """What the replica with the most takes."""
        return TokenBatches(
            min(self.segments, -(-self.count // replicas) * self.microbatch), self.length, self.microbatch
        )


@dataclass(frozen=True)
class PlannedRun:
    """One run; ``method`` None is the evaluation of the dense model. ``decoder`` is on the meta device.

    ``solvings``: how often all linears are solved, at most: a search for weights solves them once a trial.
    """

    label: str
    decoder: Decoder
    method: Method | None
    calibration: TokenBatches | None
    evaluation: tuple[TokenBatches, ...]
    per_language: bool = False
    true_sequential: bool = False
    keep: str = "checkpoint"
    solvings: int = 1

    @property
    def batches(self) -> tuple[TokenBatches, ...]:
        return (*((self.calibration,) if self.calibration else ()), *self.evaluation)

    def of_replica(self, replicas: int) -> "PlannedRun":
        calibration = None if self.calibration is None else self.calibration.of_replica(replicas)
        evaluation = tuple(one.of_replica(replicas) for one in self.evaluation)
        return replace(self, calibration=calibration, evaluation=evaluation)


class MetaDecoders:
    """Decoders without weights, each built once."""

    def __init__(self, cuda: bool) -> None:
        self._cuda = cuda
        self._built: dict[tuple[str, str | None, str], Decoder] = {}

    def decoder(self, model: str, revision: str | None, compute_dtype: str) -> Decoder:
        key = model, revision, compute_dtype
        if key not in self._built:
            checkpoint = meta_checkpoint(model, revision)
            auto = checkpoint.dtype if self._cuda else torch.float32
            dtype = auto if compute_dtype == "auto" else getattr(torch, compute_dtype)
            self._built[key] = MetaDecoder(checkpoint, dtype)
        return self._built[key]


def planned_runs(specs: Sequence[RunSpec], labels: Sequence[str], outlines: MetaDecoders) -> list[PlannedRun]:
    """One for every run, after one for every dense model that runs are compared with.

    Evaluation sets count as many segments as they take at most; those that take all their text count nothing.
    """
    works: dict[str, PlannedRun] = {}
    for spec, label in zip(specs, labels, strict=True):
        decoder = outlines.decoder(spec.model, spec.revision, spec.compute_dtype)
        distribution = distribution_for(spec.sampling, spec.model, spec.distribution, spec.revision)
        codes = parse_languages(spec.languages, distribution)
        languages, segments = len(codes), spec.segments
        if spec.statistics is not None:
            # As if every run collected for itself: what is shared among them depends on all of them.
            segments = spec.statistics.segments_per_language * len(spec.sampling.weights(distribution, codes))
        microbatch = settled_microbatch(spec.microbatch, spec.sequence_length)
        evaluation = tuple(
            TokenBatches(one.segments * languages, one.sequence_length or spec.sequence_length, microbatch)
            for one in spec.evaluation.values()
            if one.segments is not None
        )
        if evaluation:
            name = f"dense-{Path(spec.model).name}"
            works.setdefault(name, PlannedRun(name, decoder, None, None, evaluation))
        works[label] = PlannedRun(
            label,
            decoder,
            spec.method,
            TokenBatches(segments, spec.sequence_length, microbatch),
            evaluation,
            spec.per_language,
            spec.true_sequential,
            spec.keep,
            1 + spec.sampling.trials if isinstance(spec.sampling, Adaptive) else 1,
        )
    return sorted(works.values(), key=lambda work: work.method is not None)
