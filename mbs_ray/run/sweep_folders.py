"""The folders of a sweep, all under the absolute ``--out``."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mbs_ray.files import digest
from mbs_ray.run.directory import RUNS, RunDirectory

#: Fields of a run's signature, as far as it has them: what can change a bit of any forward on its machines.
FORWARD_FIELDS = ("compute_dtype", "microbatch", "device", "threads", "gpu", "torch", "transformers")

#: Folder under ``out`` of the scores of single checkpoints, on text and on tasks.
EVALUATED = "evaluated"
#: Names under ``out`` that no sweep may have: folders that all sweeps share, and those of other commands.
FOLDERS_OF_OUT = (
    "segments", "cache", "artifacts", "dense", "statistics", "adaptive", "outside", EVALUATED, "evaluate",
    "similarity", "mlflow.db",
)  # fmt: skip


def is_listed(path: Path, out: Path) -> bool:
    """Return whether a file below ``out`` is there, for one that another node may be about to write.

    Its folders are listed and its name is not asked for: NFS would keep a *no such file* for up to a minute, and the
    file that a stage wrote meanwhile would count as missing.
    """
    folder = out
    for name in path.relative_to(out).parts:
        try:
            if folder / name not in folder.iterdir():
                return False
        except (FileNotFoundError, NotADirectoryError):
            return False
        folder /= name
    return True


@dataclass(frozen=True)
class SweepFolders:
    """The folders of a sweep; sweeps under one ``out`` share segments, dense evaluations and untouched tensors."""

    out: Path
    name: str

    @classmethod
    def of(cls, sweep: Path) -> "SweepFolders":
        """Return the folders of the sweep in the absolute folder ``sweep``, which is ``<out>/<name>``."""
        return cls(sweep.parent, sweep.name)

    @property
    def sweep(self) -> Path:
        """Folder of the sweep itself."""
        return self.out / self.name

    @property
    def figures(self) -> Path:
        """Folder of the sweep's figures."""
        return self.sweep / "figures"

    @property
    def segments(self) -> Path:
        """Folder of the drawn segments."""
        return self.out / "segments"

    @property
    def cache(self) -> Path:
        """Folder of facts that are expensive to find out, such as fingerprints of checkpoints."""
        return self.out / "cache"

    @property
    def evaluated(self) -> Path:
        """Folder of the scores of single checkpoints."""
        return self.out / EVALUATED

    @property
    def artifacts(self) -> Path:
        """Folder of MLflow's artefacts, where the database is under ``out``."""
        return self.out / "artifacts"

    def run(self, label: str) -> RunDirectory:
        """Return the directory of the run with this label."""
        return RunDirectory(self.sweep / RUNS / label)

    def dense(self, model: str, evaluation: str, signature: Mapping[str, Any]) -> Path:
        """Return the folder of the dense model's scores, computed as those of the run with this signature.

        ``model`` and ``evaluation`` are fingerprints, of the model and of the text.
        """
        forward = json.dumps(
            {field: signature[field] for field in FORWARD_FIELDS if field in signature}, sort_keys=True
        )
        return self.out / "dense" / digest(model, evaluation, forward)

    @property
    def all_statistics(self) -> Path:
        """Folder of all second moments of dense models."""
        return self.out / "statistics"

    def statistics(self, key: str) -> Path:
        """Return the folder of a dense model's second moments, a file per block, of a language or of a sampling."""
        return self.all_statistics / key

    @property
    def adaptive(self) -> Path:
        """Folder of what searches for mixtures of languages found, and of tokens counted by expert."""
        return self.out / "adaptive"

    def outside(self, fingerprint: str) -> Path:
        """Return the file of the tensors no method touches, one for all runs of a model."""
        return self.out / "outside" / f"{fingerprint[:16]}.safetensors"
