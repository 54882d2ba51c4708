"""How far a sampling's Hessian lies from the one of a large corpus, and whether the near ones lose less."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from benchmarks.studies.pictures import small_multiples
from benchmarks.studies.results import increases, read, segment_file
from mbs_ray.calibration.segment_file import SegmentSet
from mbs_ray.compression import collect
from mbs_ray.methods import Statistic
from mbs_ray.model.checkpoint import Checkpoint
from mbs_ray.model.decoder import Decoder

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
            collected = collect(decoder, block, index, hidden, Statistic.FULL)
            for group in collected.inputs():
                moment = collected.moments[group[0]]
                moments.append(moment.sum / moment.tokens)
            hidden = [decoder.run_block(block, index, one) for one in hidden]
    return moments


def distances(sweep: Path, segments: Path, corpus: Path) -> pd.DataFrame:
    """Of every calibration set of a sweep: ‖H - H_corpus‖/‖H_corpus‖ (Frobenius), mean over the inputs.

    ``segments``: the folder of segment files; ``corpus``: a sweep of one run, whose calibration set stands for the
    whole corpus.
    """
    (spec,) = corpus.glob("runs/*/spec.json")
    model = Path(read(spec)["model"])
    expected = second_moments(model, segment_file(segments, read(spec.parent / "signature.json")["calibration"]))
    frame = increases(sweep)
    sets = frame.drop_duplicates("calibration")[["calibration", "sampling", "seed"]]
    values = []
    for fingerprint in sets["calibration"]:
        own = second_moments(model, segment_file(segments, fingerprint))
        pairs = zip(own, expected, strict=True)
        values.append(float(np.mean([torch.linalg.norm(o - e) / torch.linalg.norm(e) for o, e in pairs])))
    return sets.assign(distance=values)


def _points(sweep: Path, distance: pd.DataFrame) -> pd.DataFrame:
    frame = increases(sweep)
    frame["log"] = np.log(frame["increase"])
    runs = frame.groupby(["method", "sampling", "seed", "calibration"], sort=False)["log"]
    points = np.exp(pd.DataFrame({"geomean": runs.mean(), "worst": runs.max()})).reset_index()
    return points.merge(distance[["calibration", "distance"]], on="calibration")


def table(sweep: Path, distance: pd.DataFrame) -> pd.DataFrame:
    """Mean distance by sampling, the increases, and Spearman's ρ of distance and increase over all runs of a method."""
    points = _points(sweep, distance)
    rows = {}
    for (method, sampling), own in points.groupby(["method", "sampling"], sort=False):
        rows[method, sampling] = {
            "distance": f"{own['distance'].mean():.3f}",
            "geomean": f"{own['geomean'].mean():.3f}",
            "worst": f"{own['worst'].mean():.3f}",
        }
    for method, own in points.groupby("method", sort=False):
        ranks = {column: spearmanr(own["distance"], own[column]) for column in ("geomean", "worst")}
        shown = {column: f"ρ {rank.statistic:+.2f} (p {rank.pvalue:.1g})" for column, rank in ranks.items()}
        rows[method, "*all runs*"] = {"distance": "", **shown}
    return pd.DataFrame(rows).T


def figure(sweep: Path, distance: pd.DataFrame) -> Figure:
    points = _points(sweep, distance)
    methods = list(dict.fromkeys(points["method"]))
    canvas, axes = small_multiples(len(methods), "Distance to the corpus's Hessian", "perplexity ÷ dense, geomean")
    for method, panel in zip(methods, axes, strict=True):
        for sampling, own in points[points["method"] == method].groupby("sampling", sort=False):
            panel.plot(own["distance"], own["geomean"], "o", ms=5, label=sampling)
        panel.set_xlabel("‖H − H of the corpus‖ ÷ ‖H of the corpus‖")
        panel.set_title(method, fontsize=10)
    axes[0].legend(fontsize=7, frameon=False)
    return canvas
