"""What the stages are told about a run: plain data, the same for all of them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path
from typing import Any

from mbs_ray.compression.stored_moments import Source, Target
from mbs_ray.run.directory import scores_file
from mbs_ray.text.segment_file import SegmentSet


@dataclass(frozen=True)
class JobText:
    """A file of segments and what of it is asked; ``languages`` names one language per segment.

    ``microbatch``: segments in one forward, where it is not the job's. ``requests``: the segments are whole requests
    of a task. Their last token is scored but not taken through the blocks, because a model may have no position for
    it, and it is kept of each token whether it was the likeliest.
    """

    name: str
    path: Path
    languages: tuple[str, ...]
    microbatch: int | None = None
    requests: bool = False


def job_text(name: str, segments: SegmentSet) -> JobText:
    """A written set of segments as the stages are told of it; its rows go by language."""
    counted = (repeat(language, count) for language, count in segments.allocation.items())
    return JobText(name, segments.path, tuple(chain.from_iterable(counted)))


@dataclass(frozen=True)
class Microbatch:
    """Segments ``start`` to ``stop`` of one segment file; ``index`` counts over all files, in one replica."""

    index: int
    file: JobText
    start: int
    stop: int

    @property
    def language(self) -> str:
        """Of its first segment."""
        return self.file.languages[self.start]

    @property
    def languages(self) -> tuple[str, ...]:
        """Of every segment; where the one ends and the next begins there may be several."""
        return self.file.languages[self.start : self.stop]


@dataclass(frozen=True)
class Job:
    """One run, or where ``method`` is None the evaluation of the dense model, or the collecting of its statistics.

    ``true_sequential``: linears of a block see those before them compressed, at the price of a forward for each
    of the block's inputs. ``per_language``: what every linear loses in each language is measured, at the price of
    one more forward.
    ``blocks`` holds the shard of each stage. Evaluation segments follow the calibration segments
    through every block and never enter its moments. Each of ``replicas`` takes a contiguous part of the microbatches
    of every file.

    With dense statistics there is a job of its own that fills ``targets`` from ``pool``, a file for each language,
    and a run has no calibration but ``moments`` to take, and with ``per_language`` those that it is ``measured`` by.
    A ``trial`` of such a run leaves nothing but the reports of its blocks.
    """

    key: str
    model: Path
    compute_dtype: str
    microbatch: int
    method: dict[str, Any] | None
    calibration: JobText | None
    evaluation: tuple[JobText, ...]
    directory: Path
    blocks: tuple[range, ...]
    true_sequential: bool = False
    per_language: bool = False
    replicas: int = 1
    pool: tuple[JobText, ...] = ()
    targets: tuple[Target, ...] = ()
    moments: tuple[Source, ...] | None = None
    measured: tuple[Source, ...] = ()
    trial: bool = False

    @property
    def blocks_folder(self) -> Path:
        return self.directory / "blocks"

    def scores_file(self, name: str) -> Path:
        return scores_file(self.directory, name)

    def microbatches(self, replica: int = 0) -> list[Microbatch]:
        """Those of one replica, in order; ``index`` counts them."""
        parts = [(file, replica) for file in (self.calibration, *self.pool) if file]
        # Where there are many files of few microbatches, as for requests, no replica gets the odd ones of all.
        parts += [(file, (replica + turn) % self.replicas) for turn, file in enumerate(self.evaluation)]
        starts = ((file, start) for file, part in parts for start in self._starts(file, part))
        return [
            Microbatch(index, file, start, min(start + self._together(file), len(file.languages)))
            for index, (file, start) in enumerate(starts)
        ]

    def calibrating(self, replica: int = 0) -> list[Microbatch]:
        return [one for one in self.microbatches(replica) if one.file is self.calibration]

    def evaluating(self, replica: int = 0) -> Iterator[tuple[JobText, list[Microbatch]]]:
        return self._by_file(self.evaluation, replica)

    def pooled(self, replica: int = 0) -> Iterator[tuple[JobText, list[Microbatch]]]:
        return self._by_file(self.pool, replica)

    def _by_file(self, files: Iterable[JobText], replica: int) -> Iterator[tuple[JobText, list[Microbatch]]]:
        microbatches = self.microbatches(replica)
        for file in files:
            yield file, [one for one in microbatches if one.file is file]

    def _starts(self, file: JobText, part: int) -> range:
        starts = range(0, len(file.languages), self._together(file))
        return starts[len(starts) * part // self.replicas : len(starts) * (part + 1) // self.replicas]

    def _together(self, file: JobText) -> int:
        return file.microbatch or self.microbatch
