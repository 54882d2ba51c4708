"""How many segments are enough: increase against the number of segments, by sampling."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from benchmarks.studies.panels import legend_below, sampling_colour, small_multiples
from benchmarks.studies.study_table import increases


def _summaries(sweep: Path) -> pd.DataFrame:
    frame = increases(sweep)
    runs = frame.groupby(["method", "sampling", "segments"], sort=False)["increase"]
    geomean = runs.apply(lambda values: float(np.exp(np.log(values).mean())))
    return pd.DataFrame({"geomean": geomean, "worst": runs.max()})


def table(sweep: Path) -> pd.DataFrame:
    """Geometric mean / worst language, methods and samplings × segments."""
    shown = _summaries(sweep).apply(lambda row: f"{row['geomean']:.3f} / {row['worst']:.3f}", axis=1)
    wide = shown.unstack("segments")
    return wide[sorted(wide)]


def figure(sweep: Path) -> Figure:
    summaries = _summaries(sweep)
    methods = list(dict.fromkeys(summaries.index.get_level_values("method")))
    canvas, axes = small_multiples(len(methods), "How many segments are enough", "perplexity ÷ dense", height=4.4)
    for method, panel in zip(methods, axes, strict=True):
        for sampling, own in summaries.loc[method].groupby(level="sampling", sort=False):
            own = own.droplevel("sampling").sort_index()
            colour = sampling_colour(str(sampling))
            panel.plot(own.index, own["geomean"], "o-", ms=4, color=colour, label=f"{sampling}, geomean")
            panel.plot(own.index, own["worst"], "s:", ms=4, color=colour, label=f"{sampling}, worst")
        counts = sorted(set(summaries.index.get_level_values("segments")))
        panel.set_xscale("log", base=2)
        panel.set_xticks(counts, [str(count) for count in counts], fontsize=8)
        panel.set_xlabel("segments")
        panel.set_title(method, fontsize=10)
    legend_below(canvas, columns=3)
    return canvas
