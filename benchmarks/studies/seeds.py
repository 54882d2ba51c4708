"""Five seeds: what of a difference between samplings is more than the drawing of text."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.stats import t

from benchmarks.studies.panels import legend_below, sampling_colour, small_multiples
from benchmarks.studies.study_table import increases, summaries

_BASE = "equal"


def table(sweep: Path) -> pd.DataFrame:
    """Mean and half width of the 95 % interval (t, over seeds) of log increase differences to equal sampling.

    Each seed is a pair: both samplings are scored on the same tokens. In per cent of perplexity; rows are methods
    and samplings, columns the geometric mean over languages, the worst language, and English.
    """
    rows = {}
    logs = _by_run(sweep)
    for (method, sampling), own in logs.groupby(level=["method", "sampling"], sort=False):
        if sampling == _BASE:
            continue
        paired = own.droplevel(["method", "sampling"]) - logs.xs((method, _BASE), level=("method", "sampling"))
        rows[method, f"{sampling} − {_BASE}"] = {column: interval(paired[column]) for column in paired}
    return pd.DataFrame(rows).T


def spread(sweep: Path) -> pd.DataFrame:
    """Standard deviation over seeds of a single run's 100 × log increase, pooled over samplings; and of one language.

    What a study with a single seed has to be read with.
    """
    frame = increases(sweep)
    frame["log"] = 100 * np.log(frame["increase"])
    language = frame.groupby(["method", "sampling", "language"])["log"].var().groupby("method").mean()
    runs = (100 * _by_run(sweep)).groupby(level=["method", "sampling"]).var().groupby("method").mean()
    columns = {"geomean": runs["geomean"], "worst": runs["worst"], "one language": language}
    return pd.DataFrame(columns).pow(0.5).map("{:.2f}".format)


def _by_run(sweep: Path) -> pd.DataFrame:
    frame = increases(sweep)
    frame["log"] = np.log(frame["increase"])
    keys = ["method", "sampling", "seed"]
    return summaries(frame.set_index([*keys, "language"])["log"], keys).sort_index()


def interval(values: pd.Series) -> str:
    """Mean ± half of the 95 % interval (t), in per cent of perplexity where values are differences of logs."""
    half = t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    mark = "" if abs(values.mean()) > half else " (noise)"
    return f"{100 * values.mean():+.2f} ± {100 * half:.2f}{mark}"


def figure(sweep: Path) -> Figure:
    """Every seed a point: increase of the geometric mean, the worst language and English, by method and sampling."""
    logs = np.exp(_by_run(sweep))
    methods = list(dict.fromkeys(logs.index.get_level_values("method")))
    canvas, axes = small_multiples(len(methods), "Five seeds: perplexity over dense", "perplexity ÷ dense")
    for method, panel in zip(methods, axes, strict=True):
        samplings = list(dict.fromkeys(logs.loc[method].index.get_level_values("sampling")))
        for offset, sampling in enumerate(samplings):
            own = logs.xs((method, sampling), level=("method", "sampling"))
            for x, column in enumerate(own):
                place = np.full(len(own), x + (offset - 1) * 0.22)
                label = sampling if x == 0 else None
                panel.plot(place, own[column], "o", ms=4, alpha=0.7, color=sampling_colour(sampling), label=label)
        panel.set_xticks(range(len(logs.columns)), logs.columns)
        panel.set_title(method, fontsize=10)
    legend_below(canvas, columns=3)
    return canvas
