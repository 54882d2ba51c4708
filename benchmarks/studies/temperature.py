"""From equal to proportional: shares raised to a power between 0 and 1."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from benchmarks.studies.panels import legend_below, small_multiples
from benchmarks.studies.study_table import increases

_COLUMNS = {"geomean": "#0072b2", "worst": "#d55e00", "en": "#009e73"}


def _by_seed(sweep: Path) -> pd.DataFrame:
    frame = increases(sweep)
    frame["alpha"] = [options["alpha"] for options in frame["options"]]
    keys = ["method", "alpha", "seed"]
    runs = frame.groupby(keys, sort=False)["increase"]
    geomean = runs.apply(lambda values: float(np.exp(np.log(values).mean())))
    english = frame[frame["language"] == "en"].set_index(keys)["increase"]
    return pd.DataFrame({"geomean": geomean, "worst": runs.max(), "en": english})


def table(sweep: Path) -> pd.DataFrame:
    """Mean over seeds ± half their range, by method, and powers as columns."""
    groups = _by_seed(sweep).groupby(level=["method", "alpha"], sort=False)
    spread = (groups.max() - groups.min()) / 2
    means = groups.mean()
    shown = pd.DataFrame(
        {
            column: [f"{m:.3f} ± {s:.3f}" for m, s in zip(means[column], spread[column], strict=True)]
            for column in means
        },
        index=means.index,
    )
    wide = shown.stack().unstack("alpha")
    return wide[sorted(wide)]


def figure(sweep: Path) -> Figure:
    by_seed = _by_seed(sweep)
    methods = list(dict.fromkeys(by_seed.index.get_level_values("method")))
    canvas, axes = small_multiples(
        len(methods), "Temperature of the sampling: shares to a power, 0 equal, 1 proportional", "perplexity ÷ dense"
    )
    for method, panel in zip(methods, axes, strict=True):
        groups = by_seed.loc[method].groupby(level="alpha")
        for column, colour in _COLUMNS.items():
            mean, low, high = groups[column].mean(), groups[column].min(), groups[column].max()
            panel.fill_between(mean.index, low, high, color=colour, alpha=0.2, lw=0)
            panel.plot(mean.index, mean, "o-", ms=4, color=colour, label=column)
        panel.set_xlabel("power of the share")
        panel.set_title(method, fontsize=10)
    legend_below(canvas, columns=3)
    return canvas
