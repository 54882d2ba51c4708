"""Similarity of languages inside the dense model, from the calibration sets of the monolingual study."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from benchmarks.studies.study_table import read, segment_file
from mbs_ray.cluster.activations.memory_tier import MemoryTier
from mbs_ray.cluster.activations.store import ActivationStore
from mbs_ray.evaluation.language_angles import measure_similarity
from mbs_ray.model.checkpoint import Checkpoint
from mbs_ray.model.decoder import Decoder
from mbs_ray.text.segment_file import SegmentSet

_MICROBATCH = 32


def similarities(sweep: Path, segments: Path) -> dict[str, dict[str, pd.DataFrame]]:
    """By model and kind, languages × languages, cosines of :mod:`mbs_ray.evaluation.language_angles`: ``diagonal`` at
    the input of block 0 (the vector of arXiv 2404.04748), and ``full``, the mean over the inputs of all blocks."""
    found: dict[str, dict[str, pd.DataFrame]] = {}
    for name, (model, sets) in _sets(sweep).items():
        token_ids = {
            language: torch.from_numpy(SegmentSet.open(segment_file(segments, one)).read().token_ids.astype(np.int64))
            for language, one in sets.items()
        }
        store = ActivationStore(MemoryTier(torch.device("cpu")))
        decoder = Decoder(Checkpoint(model), torch.float32)
        measured = measure_similarity(decoder, token_ids, _MICROBATCH, store, lambda done, total: None)
        codes = measured.languages
        found[name] = {
            "diagonal, block 0": pd.DataFrame(measured.cosines["diagonal"][0], codes, codes),
            "full, all blocks": pd.DataFrame(measured.cosines["full"].mean(axis=0), codes, codes),
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
