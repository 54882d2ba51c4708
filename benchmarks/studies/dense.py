"""Second moments of the dense model against propagated ones: what that does to each language, paired by seed."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from benchmarks.studies.panels import legend_below, small_multiples
from benchmarks.studies.seeds import interval
from benchmarks.studies.study_table import increases, summaries

_BASE = "propagated"
_KEYS = ["method", "sampling", "statistics", "seed"]


def table(sweep: Path) -> pd.DataFrame:
    """Mean over seeds of the geometric mean, the worst language and English: perplexity over dense, and how dense
    statistics differ from propagated ones in 100 × log, ± half of the 95 % interval (t, paired by seed)."""
    logs = summaries(_logs(sweep), _KEYS)
    rows = {}
    for (method, sampling, statistics), own in logs.groupby(level=_KEYS[:3], sort=False):
        means = np.exp(own.mean())
        row = {f"{column} ÷ dense model": f"{means[column]:.3f}" for column in own}
        if statistics != _BASE:
            base = logs.xs((method, sampling, _BASE), level=_KEYS[:3])
            paired = own.droplevel(_KEYS[:3]) - base
            row |= {f"{column} − {_BASE}": interval(paired[column]) for column in paired}
        rows[method, sampling, statistics] = row
    return pd.DataFrame.from_dict(rows, orient="index").fillna("").sort_index(kind="stable")


def by_language(sweep: Path) -> pd.DataFrame:
    """Languages × (method, sampling, statistics): dense − propagated in 100 × log, mean over seeds ± half interval."""
    logs = _logs(sweep).unstack("language")
    columns = {}
    for (method, sampling, statistics), own in logs.groupby(level=_KEYS[:3], sort=False):
        if statistics != _BASE:
            paired = own.droplevel(_KEYS[:3]) - logs.xs((method, sampling, _BASE), level=_KEYS[:3])
            columns[f"{method}, {sampling}, {statistics}"] = {code: interval(paired[code]) for code in paired}
    return pd.DataFrame(columns)


def figure(sweep: Path) -> Figure:
    """Every language a point: perplexity over dense with propagated and with dense statistics, means over seeds."""
    means = np.exp(_logs(sweep).groupby(level=[*_KEYS[:3], "language"], sort=False).mean())
    methods = list(dict.fromkeys(means.index.get_level_values("method")))
    canvas, axes = small_multiples(
        len(methods), "Statistics: dense against propagated", "÷ dense model, dense statistics"
    )
    for method, panel in zip(methods, axes, strict=True):
        own = means.xs(method, level="method")
        names = [name for name in dict.fromkeys(own.index.get_level_values("statistics")) if name != _BASE]
        base = own.xs(_BASE, level="statistics")
        for name, marker in zip(names, "o^sv", strict=False):
            for sampling, colour in zip(dict.fromkeys(base.index.get_level_values("sampling")), _COLOURS, strict=False):
                x, y = base.loc[sampling], own.xs((sampling, name), level=("sampling", "statistics"))
                label = f"{sampling}, {name}"
                panel.plot(x, y.loc[x.index], marker, ms=4, alpha=0.7, color=colour, label=label, ls="")
        ends = [float(own.min()), float(own.max())]
        panel.plot(ends, ends, color="0.6", lw=0.8, zorder=0)
        panel.set_xlabel("÷ dense model, propagated statistics")
        panel.set_title(method, fontsize=10)
    legend_below(canvas, columns=3)
    return canvas


_COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7")


def _logs(sweep: Path) -> pd.Series:
    """Log increase by method, sampling, statistics, seed and language."""
    frame = increases(sweep)
    frame["log"] = np.log(frame["increase"])
    return frame.set_index([*_KEYS, "language"])["log"]
