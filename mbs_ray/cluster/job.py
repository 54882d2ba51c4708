"""The description of a run that the stages receive: plain data, the same for all of them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path
from typing import Any

from mbs_ray.compression.stored_moments import Source, Target
from mbs_ray.methods import Amounts
from mbs_ray.run.directory import scores_file
from mbs_ray.text.segment_file import SegmentSet


@dataclass(frozen=True)
class JobText:
    """A file of segments and what to do with it; ``languages`` names one language per segment.

    ``microbatch``: segments in one forward, if not the job's number. ``requests``: the segments are whole requests of
    a task. Their last token is scored but not taken through the blocks, because a model may have no position for it,
    and for each token it is recorded whether it was the likeliest.
    """

    name: str
    path: Path
    languages: tuple[str, ...]
    microbatch: int | None = None
    requests: bool = False


def job_text(name: str, segments: SegmentSet) -> JobText:
    """Describe a written set of segments to the stages; its rows are ordered by language."""
    counted = (repeat(language, count) for language, count in segments.allocation.items())
    return JobText(name, segments.path, tuple(chain.from_iterable(counted)))


@dataclass(frozen=True)
class Fit:
    """How linears are fitted to the dense model; ``dense`` is the calibration text once more, on its way through it.

    ``strength``: how much of the step towards it is taken; None: found for each linear.
    """

    dense: JobText
    strength: float | None = None


@dataclass(frozen=True)
class Compress:
    """Work: compress every linear, with moments collected while ``calibration`` passes the compressed blocks.

    ``true_sequential``: linears of a block see those before them compressed, at the price of a forward for each
    of the block's inputs. ``per_language``: the error of every linear in each language is measured, at the price of
    one more forward. ``fit``: linears are fitted to the dense model's outputs, at the price of a forward of it.
    ``amounts``: those of the linears, where the method's own is not that of all. ``expert_tokens``: tokens for each
    column below which the moments of an expert are shrunk towards those of all tokens.
    """

    method: dict[str, Any]
    calibration: JobText
    true_sequential: bool = False
    per_language: bool = False
    fit: Fit | None = None
    amounts: Amounts | None = None
    expert_tokens: float = 4.0


@dataclass(frozen=True)
class CompressStored:
    """Work: compress every linear with ``moments`` of the dense model that are on disk.

    ``measured``: the moments by which each language's loss is measured; empty where that is not requested.
    ``amounts``: as for :class:`Compress`.
    """

    method: dict[str, Any]
    moments: tuple[Source, ...]
    measured: tuple[Source, ...] = ()
    amounts: Amounts | None = None


@dataclass(frozen=True)
class Try:
    """Work: solve as :class:`CompressStored` does, but write nothing except the reports of the blocks.

    ``run`` is the label of the run whose mixture of languages, or amounts, are sought; ``number`` counts its trials
    from 0.
    """

    run: str
    number: int
    method: dict[str, Any]
    moments: tuple[Source, ...]
    measured: tuple[Source, ...]


@dataclass(frozen=True)
class Collect:
    """Work: fill ``targets`` with second moments of the dense model, from a ``pool`` of one text per language."""

    pool: tuple[JobText, ...]
    targets: tuple[Target, ...]


@dataclass(frozen=True)
class Route:
    """Work: count which tokens of ``calibration`` the dense model sends to which expert, into the reports of blocks."""

    calibration: JobText


@dataclass(frozen=True)
class Score:
    """Work: evaluate the model without compressing it."""


Work = Compress | CompressStored | Try | Collect | Route | Score


@dataclass(frozen=True)
class Microbatch:
    """Segments ``start`` to ``stop`` of one segment file; ``index`` counts over all files, in one replica."""

    index: int
    file: JobText
    start: int
    stop: int

    @property
    def language(self) -> str:
        """Language of the first segment."""
        return self.file.languages[self.start]

    @property
    def languages(self) -> tuple[str, ...]:
        """Language of every segment; where one language ends and the next begins there are several."""
        return self.file.languages[self.start : self.stop]


@dataclass(frozen=True)
class Job:
    """A run on its way through the stages: what all kinds of work share, and the ``work`` itself.

    ``blocks`` holds the shard of each stage. Texts for ``evaluation`` follow those of the work through every block
    and never enter its moments. Each of ``replicas`` takes a contiguous part of the microbatches of every file.
    """

    key: str
    model: Path
    compute_dtype: str
    microbatch: int
    directory: Path
    blocks: tuple[range, ...]
    work: Work
    evaluation: tuple[JobText, ...] = ()
    replicas: int = 1

    @property
    def blocks_folder(self) -> Path:
        """Folder of the compressed blocks and their reports."""
        return self.directory / "blocks"

    @property
    def learned(self) -> tuple[JobText, ...]:
        """Texts that moments are collected, or tokens counted, from."""
        match self.work:
            case Compress(calibration=calibration, fit=fit):
                return (calibration,) if fit is None else (calibration, fit.dense)
            case Collect(pool=pool):
                return pool
            case Route(calibration=calibration):
                return (calibration,)
            case _:
                return ()

    @property
    def waits_for_text(self) -> bool:
        """Whether a stage can do nothing with its blocks before microbatches arrive."""
        return not isinstance(self.work, CompressStored | Try)

    def scores_file(self, name: str) -> Path:
        """Return the file of the token scores of the evaluation set ``name``."""
        return scores_file(self.directory, name)

    def microbatches(self, replica: int = 0) -> list[Microbatch]:
        """List the microbatches of one replica, in order; ``index`` counts them."""
        parts = [(file, replica) for file in self.learned]
        # Parts rotate over the files: among many short ones, as of requests, no replica gets the odd microbatch of all.
        parts += [(file, (replica + turn) % self.replicas) for turn, file in enumerate(self.evaluation)]
        starts = ((file, start) for file, part in parts for start in self._starts(file, part))
        return [
            Microbatch(index, file, start, min(start + self._together(file), len(file.languages)))
            for index, (file, start) in enumerate(starts)
        ]

    def by_file(self, files: Iterable[JobText], replica: int = 0) -> Iterator[tuple[JobText, list[Microbatch]]]:
        """Yield each of these files of the job with its microbatches in one replica."""
        microbatches = self.microbatches(replica)
        for file in files:
            yield file, [one for one in microbatches if one.file is file]

    def _starts(self, file: JobText, part: int) -> range:
        # A contiguous part of about equal size for each replica: part p of n begins at p / n of the microbatches.
        starts = range(0, len(file.languages), self._together(file))
        return starts[len(starts) * part // self.replicas : len(starts) * (part + 1) // self.replicas]

    def _together(self, file: JobText) -> int:
        return file.microbatch or self.microbatch
