"""How far a sampling's Hessian lies from the one of a large corpus, and whether the near ones lose less."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from benchmarks.studies.panels import legend_below, sampling_colour, small_multiples
from benchmarks.studies.study_table import increases, read, segment_file
from mbs_ray.compression.collect import collect
from mbs_ray.methods import Statistic
from mbs_ray.model.checkpoint import Checkpoint
from mbs_ray.model.decoder import Decoder
from mbs_ray.model.recorder import hidden_states
from mbs_ray.text.segment_file import SegmentSet

_MICROBATCH = 32


def second_moments(model: Path, segments: Path) -> list[torch.Tensor]:
    """Mean x xᵀ, float32, at every distinct input of a linear of the dense model, block by block."""
    decoder = Decoder(Checkpoint(model), torch.float32)
    token_ids = torch.from_numpy(SegmentSet.open(segments).read().token_ids.astype(np.int64))
    with torch.inference_mode():
        hidden = [decoder.embed(rows) for rows in token_ids.split(_MICROBATCH)]
        moments = []
        for index in range(decoder.blocks):
            block = decoder.load_block(index, decoder.read_block(index))
            following: list[torch.Tensor] = []  # what collecting makes anyway is the next block's input
            block.register_forward_hook(
                lambda module, inputs, output, made=following: made.append(hidden_states(output))
            )
            collected = collect(decoder, block, index, hidden, Statistic.FULL)
            hidden = following
            for group in collected.inputs():
                moment = collected.moments[group[0]]
                moments.append(moment.sum / moment.tokens)
    return moments


def distances(sweeps: Sequence[Path], segments: Path, corpus: Path) -> pd.Series:
    """Fingerprint of a calibration set → ‖H - H_corpus‖/‖H_corpus‖ (Frobenius), mean over the inputs of linears.

    ``segments``: the folder of segment files; ``corpus``: a sweep of one run, whose calibration set stands for the
    whole corpus.
    """
    (spec,) = corpus.glob("runs/*/spec.json")
    model = Path(read(spec)["model"])
    expected = second_moments(model, segment_file(segments, read(spec.parent / "signature.json")["calibration"]))
    values = {}
    for fingerprint in _rows(sweeps)["calibration"].unique():
        own = second_moments(model, segment_file(segments, fingerprint))
        pairs = zip(own, expected, strict=True)
        values[fingerprint] = float(np.mean([torch.linalg.norm(o - e) / torch.linalg.norm(e) for o, e in pairs]))
    return pd.Series(values, name="distance")


def _rows(sweeps: Sequence[Path]) -> pd.DataFrame:
    """Rows of all sweeps; a set that two of them drew (power 0 is equal) counts once, by its name in the first."""
    return pd.concat(map(increases, sweeps)).drop_duplicates(["method", "calibration", "language"])


def _points(sweeps: Sequence[Path], distance: pd.Series) -> pd.DataFrame:
    frame = _rows(sweeps)
    frame["log"] = np.log(frame["increase"])
    runs = frame.groupby(["method", "sampling", "seed", "calibration"], sort=False)["log"]
    points = np.exp(pd.DataFrame({"geomean": runs.mean(), "worst": runs.max()})).reset_index()
    points["distance"] = points["calibration"].map(distance)
    points["nearness"] = points.groupby("sampling")["distance"].transform("mean")
    return points.sort_values(["method", "nearness", "distance"])


def table(sweeps: Sequence[Path], distance: pd.Series) -> pd.DataFrame:
    """Mean distance by sampling, nearest first, and the increases; Spearman's ρ of distance and increase over runs.

    Without p: runs of one sampling are no independent points.
    """
    points = _points(sweeps, distance)
    rows = {}
    for (method, sampling), own in points.groupby(["method", "sampling"], sort=False):
        rows[method, sampling] = {
            "runs": str(len(own)),
            "distance": f"{own['distance'].mean():.3f}",
            "geomean": f"{own['geomean'].mean():.3f}",
            "worst": f"{own['worst'].mean():.3f}",
        }
    for method, all_runs in points.groupby("method", sort=False):
        spread = all_runs[~all_runs["sampling"].str.startswith("monolingual")]
        for name, own in (("ρ, all runs", all_runs), ("ρ, without English", spread)):
            ranks = {
                column: f"{spearmanr(own['distance'], own[column]).statistic:+.2f}" for column in ("geomean", "worst")
            }
            rows[method, name] = {"runs": str(len(own)), "distance": "", **ranks}
    return pd.DataFrame(rows).T


def figure(sweeps: Sequence[Path], distance: pd.Series) -> Figure:
    points = _points(sweeps, distance)
    methods = list(dict.fromkeys(points["method"]))
    canvas, axes = small_multiples(len(methods), "Distance to the corpus's Hessian", "perplexity ÷ dense, geomean")
    for method, panel in zip(methods, axes, strict=True):
        groups = points[points["method"] == method].groupby("sampling", sort=False)
        for (sampling, own), marker in zip(groups, "osD^vP", strict=True):
            colour = sampling_colour(str(sampling))
            panel.plot(own["distance"], own["geomean"], marker, ms=5, alpha=0.8, color=colour, label=sampling)
        panel.set_xlabel("‖H - H of the corpus‖ ÷ ‖H of the corpus‖", fontsize=9)
        panel.set_title(method, fontsize=10)
    legend_below(canvas, columns=6)
    return canvas
