"""Fitted to the dense model, or not: what becomes of perplexity on other text, five seeds, both minis."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from benchmarks.studies import paired
from benchmarks.studies.panels import legend_below, small_multiples
from benchmarks.studies.study_table import increases
from mbs_ray.run.modes import PROPAGATED

_SUFFIX = "-refine1"
#: Beside this sweep: the same runs fitted and refined.
_TOGETHER = "fit-and-refine"
#: And with a budget besides.
_ALL = "budget-fit-refine"
BOTH, ALL = "both", "all"
_WAYS = {
    paired.WITHOUT: ("#999999", "method alone"),
    paired.WITH: ("#56b4e9", "fit_to: dense"),
    BOTH: ("#0072b2", "fit_to: dense, refine: 1"),
}
_WAYS_BY_SIZE = {**_WAYS, ALL: ("#d55e00", "and budget: increase")}
#: Methods by size.
_SIZES = {
    "bits of a weight (GPTQ)": {2: "gptq-2bit-g64", 3: "gptq-3bit-g64", 4: "gptq-4bit-g64"},
    "% of weights kept (SparseGPT)": {30: "sparsegpt-70", 40: "sparsegpt-60", 50: "sparsegpt-50"},
}


def _frame(sweep: Path) -> pd.DataFrame:
    frame = increases(sweep)
    way = np.where(frame["fit"] == PROPAGATED, paired.WITHOUT, paired.WITH)
    return frame.assign(log=np.log(frame["increase"]), way=way)


def _together(sweep: Path, beside: str = _TOGETHER, way: str = BOTH) -> pd.DataFrame:
    """The runs that are fitted and refined; empty where that sweep has not been run."""
    frame = increases(sweep.parent / beside)
    if frame.empty:
        return frame
    return frame.assign(log=np.log(frame["increase"]), way=way, method=frame["method"].str.removesuffix(_SUFFIX))


def table(sweep: Path) -> pd.DataFrame:
    return paired.table(_frame(sweep))


def together(sweep: Path) -> pd.DataFrame:
    """The same of runs that are fitted and refined, against those with neither."""
    frame, both = _frame(sweep), _together(sweep)
    if both.empty:
        return both
    return paired.table(pd.concat([frame[frame["way"] == paired.WITHOUT], both.assign(way=paired.WITH)]))


def by_language(sweep: Path) -> pd.DataFrame:
    return paired.by_language(_frame(sweep))


def kept_out(sweep: Path) -> pd.DataFrame:
    return paired.kept_out(_frame(sweep))


def figure(sweep: Path) -> Figure:
    frame = pd.concat([_frame(sweep), _together(sweep)])
    return paired.figure(frame, "Fitted to the dense model: perplexity over dense", _WAYS)


def figure_by_size(sweep: Path) -> Figure:
    """Increase of the geometric mean against size, a curve per recipe: bits of a weight, and weights that stay."""
    frames = [_frame(sweep), _together(sweep), _together(sweep, _ALL, ALL)]
    means = paired.logs_by_run(pd.concat(frames))["geomean"].groupby(["model", "method", "way"]).mean()
    canvas, axes = small_multiples(2 * len(means.index.levels[0]), "Increase against size", "increase in %", height=3.4)
    panels = iter(axes)
    for model in means.index.levels[0]:
        for name, sizes in _SIZES.items():
            panel = next(panels)
            for way, (colour, label) in _WAYS_BY_SIZE.items():
                there = {size: method for size, method in sizes.items() if (model, method, way) in means.index}
                heights = [100 * (np.exp(means[model, method, way]) - 1) for method in there.values()]
                panel.plot(list(there), heights, "o-", color=colour, label=label, markersize=4)
            panel.set_yscale("log")
            panel.set_title(model, fontsize=10)
            panel.set_xlabel(name, fontsize=8)
            panel.set_xticks(list(sizes))
            panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            panel.yaxis.set_major_formatter("{x:g}")
            panel.yaxis.set_minor_formatter(NullFormatter())
    legend_below(canvas, columns=len(_WAYS_BY_SIZE))
    return canvas
