"""Token sequences of many lengths as evaluation sets for the stages: one per length, so that nothing is padded."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from mbs_ray.cluster.job import JobText
from mbs_ray.evaluation.token_scores import RequestScore
from mbs_ray.model.decoder import Decoder
from mbs_ray.run.directory import scores_file
from mbs_ray.run.microbatch import auto_microbatch
from mbs_ray.text.language_draw import LanguageSegments
from mbs_ray.text.segment_file import write_segments
from mbs_ray.text.shards import DIGEST_BYTES, Source
from mbs_ray.text.token_stream import TokenStream

_KIND = "requests"


class TokenRequests:
    """Sequences of at least two token ids, each distinct one once, grouped by their exact length.

    Files are written to ``folder``; the longest come first, so that what does not fit in memory fails at once.
    """

    def __init__(self, folder: Path, sequences: Sequence[Sequence[int]]) -> None:
        self._folder = folder
        self._asked = [tuple(sequence) for sequence in sequences]
        self._by_length: dict[int, list[tuple[int, ...]]] = {}
        for sequence in sorted(dict.fromkeys(self._asked), key=len, reverse=True):
            self._by_length.setdefault(len(sequence), []).append(sequence)

    @property
    def tokens(self) -> int:
        """Tokens of all distinct sequences."""
        return sum(length * len(rows) for length, rows in self._by_length.items())

    def write(self, device: str, decoder: Decoder) -> tuple[JobText, ...]:
        """Write a file of segments for each length, with a microbatch that suits it, the device and the model."""
        return tuple(
            self._write(length, rows, auto_microbatch(length, device, decoder))
            for length, rows in self._by_length.items()
        )

    def scores(self, directory: Path) -> list[RequestScore]:
        """Read the scores, in the order of the sequences, from the files of a job's ``directory``."""
        found: dict[tuple[int, ...], RequestScore] = {}
        for length, rows in self._by_length.items():
            table = pq.read_table(scores_file(directory, _name(length)), columns=["nll", "is_argmax"])
            columns = (table[name].to_numpy().reshape(len(rows), length - 1) for name in ("nll", "is_argmax"))
            found |= {row: RequestScore(*scored) for row, *scored in zip(rows, *columns, strict=True)}
        return [found[sequence] for sequence in self._asked]

    def _write(self, length: int, rows: Sequence[tuple[int, ...]], microbatch: int) -> JobText:
        # No bytes: a request is no running text, whose bits per byte would be asked for.
        nothing = np.zeros(length, np.int32)
        source = Source(_KIND, bytes(DIGEST_BYTES), "")
        segments = [TokenStream(np.asarray(row, np.int32), nothing, nothing, (source,)) for row in rows]
        facts: Mapping[str, LanguageSegments] = {_KIND: LanguageSegments(segments, {})}
        path = self._folder / f"{_name(length)}.parquet"
        write_segments(path, _name(length), {"sequence_length": length}, facts)
        return JobText(_name(length), path, (_KIND,) * len(rows), microbatch, requests=True)


def _name(length: int) -> str:
    return f"length-{length}"
