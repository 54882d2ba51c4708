"""Similarity of languages inside the dense model, from the calibration sets of the monolingual study."""

from pathlib import Path

import pandas as pd
import torch

from benchmarks.studies.hessian import second_moments
from benchmarks.studies.results import read, segment_file


def similarities(sweep: Path, segments: Path) -> dict[str, dict[str, pd.DataFrame]]:
    """By model and kind, languages × languages: cosine of the mean squares at the first linear (the vector of arXiv
    2404.04748), and of full second moments (Frobenius), mean over all inputs of linears."""
    found: dict[str, dict[str, pd.DataFrame]] = {}
    for name, (model, sets) in _sets(sweep).items():
        moments = {language: second_moments(model, segment_file(segments, one)) for language, one in sets.items()}
        first = torch.stack([own[0].diagonal() for own in moments.values()])
        full = [
            _cosines(torch.stack([own[i].flatten() for own in moments.values()])) for i in range(len(moments["en"]))
        ]
        codes = list(moments)
        found[name] = {
            "mean squares, block 1": pd.DataFrame(_cosines(first).numpy(), codes, codes),
            "second moments, all blocks": pd.DataFrame(torch.stack(full).mean(0).numpy(), codes, codes),
        }
    return found


def _sets(sweep: Path) -> dict[str, tuple[Path, dict[str, str]]]:
    """By model: its folder, and language → fingerprint of the calibration set."""
    sets: dict[str, tuple[Path, dict[str, str]]] = {}
    for path in sorted(sweep.glob("runs/*/spec.json")):
        spec = read(path)
        model = Path(spec["model"])
        language = spec["sampling"]["language"]
        sets.setdefault(model.name, (model, {}))[1][language] = read(path.parent / "signature.json")["calibration"]
    return sets


def _cosines(vectors: torch.Tensor) -> torch.Tensor:
    unit = torch.nn.functional.normalize(vectors.double(), dim=1)
    return unit @ unit.T
