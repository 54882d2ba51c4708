"""Where a sweep keeps its files, all under the absolute ``--out``."""

from dataclasses import dataclass
from pathlib import Path

from mbs_ray.run_directory import RunDirectory


@dataclass(frozen=True)
class Places:
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

    def dense(self, key: str) -> Path:
        return self.out / "dense" / key

    def outside(self, fingerprint: str) -> Path:
        """The tensors no method touches, once for all runs of a model."""
        return self.out / "outside" / f"{fingerprint[:16]}.safetensors"
