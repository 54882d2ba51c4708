"""Does a language that the model saw little of resist compression less? Increase against the share of training data."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from benchmarks.studies.panels import legend_below, sampling_colour, small_multiples
from benchmarks.studies.study_table import increases, shares


def _means(sweep: Path) -> pd.DataFrame:
    """Mean over seeds, with the share of each language."""
    frame = increases(sweep)
    (share,) = shares(sweep).values()
    means = frame.groupby(["method", "sampling", "language"], sort=False)["increase"].mean().reset_index()
    return means.assign(share=means["language"].map(share))


def table(sweep: Path) -> pd.DataFrame:
    """Spearman's correlation of share and increase over the languages, its p, and the slope per tenfold share."""
    rows = {}
    for key, own in _means(sweep).groupby(["method", "sampling"], sort=False):
        rank = spearmanr(own["share"], own["increase"])
        slope = np.polyfit(np.log10(own["share"]), 100 * np.log(own["increase"]), 1)[0]
        rows[key] = {
            "Spearman's ρ": f"{rank.statistic:+.2f}",
            "p": f"{rank.pvalue:.3f}",
            "% of perplexity per tenfold share": f"{slope:+.2f}",
        }
    return pd.DataFrame(rows).T


def figure(sweep: Path) -> Figure:
    means = _means(sweep)
    methods = list(dict.fromkeys(means["method"]))
    canvas, axes = small_multiples(
        len(methods), "Share of the training data and increase of perplexity", "perplexity ÷ dense"
    )
    for method, panel in zip(methods, axes, strict=True):
        for sampling, own in means[means["method"] == method].groupby("sampling", sort=False):
            panel.plot(own["share"], own["increase"], "o", ms=4, color=sampling_colour(str(sampling)), label=sampling)
            fit = np.polyfit(np.log(own["share"]), own["increase"], 1)
            ends = np.array([own["share"].min(), own["share"].max()])
            panel.plot(ends, np.polyval(fit, np.log(ends)), color=sampling_colour(str(sampling)), lw=1)
        panel.set_xscale("log")
        panel.set_xlabel("share of training data")
        panel.set_title(method, fontsize=10)
    legend_below(canvas, columns=3)
    return canvas
