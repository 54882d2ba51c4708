"""Where a sweep keeps its files, all under the absolute ``--out``."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mbs_ray.files import digest
from mbs_ray.run.directory import RunDirectory

#: What of the machine and the arithmetic can change a bit of any forward: fields of every run's signature.
FORWARD_FIELDS = ("compute_dtype", "microbatch", "device", "threads", "torch")

#: Names under ``out`` that no sweep may have: folders that all sweeps share, and those of other commands.
FOLDERS_OF_OUT = (
    "segments", "cache", "artifacts", "dense", "statistics", "adaptive", "outside", "evaluated", "evaluate",
    "similarity", "mlflow.db",
)  # fmt: skip


@dataclass(frozen=True)
class SweepFolders:
    """Sweeps under one ``out`` share segments, dense evaluations and untouched tensors."""

    out: Path
    name: str

    @property
    def sweep(self) -> Path:
        return self.out / self.name

    @property
    def segments(self) -> Path:
        return self.out / "segments"

    @property
    def cache(self) -> Path:
        return self.out / "cache"

    @property
    def artifacts(self) -> Path:
        return self.out / "artifacts"

    def run(self, label: str) -> RunDirectory:
        return RunDirectory(self.sweep / "runs" / label)

    def dense(self, model: str, evaluation: str, signature: Mapping[str, Any]) -> Path:
        """Where the dense model is scored as the run with this signature was; fingerprints of model and text."""
        forward = json.dumps({field: signature[field] for field in FORWARD_FIELDS}, sort_keys=True)
        return self.out / "dense" / digest(model, evaluation, forward)

    @property
    def all_statistics(self) -> Path:
        return self.out / "statistics"

    def statistics(self, key: str) -> Path:
        """Second moments of a dense model, a file per block, of a language or of a sampling."""
        return self.all_statistics / key

    @property
    def adaptive(self) -> Path:
        """What searches for mixtures of languages found."""
        return self.out / "adaptive"

    def outside(self, fingerprint: str) -> Path:
        """The tensors no method touches, once for all runs of a model."""
        return self.out / "outside" / f"{fingerprint[:16]}.safetensors"
