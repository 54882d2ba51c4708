"""The demo's grid on minis of two families: do the same languages pay for English calibration, and how much?"""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from benchmarks.studies.panels import small_multiples
from benchmarks.studies.seeds import interval
from benchmarks.studies.study_table import increases, summaries
from mbs_ray.report.colours import ASIDE, BAR

_ENGLISH, _EQUAL = "monolingual-en", "equal"
_KEYS = ["model", "method", "sampling", "seed"]


def _logs(sweeps: list[Path]) -> pd.Series:
    frame = pd.concat([increases(sweep) for sweep in sweeps])
    return frame.assign(log=np.log(frame["increase"])).set_index([*_KEYS, "language"])["log"]


def table(sweeps: list[Path]) -> pd.DataFrame:
    """By model, method and sampling: geometric mean of the increase, and paired differences to equal in per cent."""
    logs = summaries(_logs(sweeps), _KEYS)
    rows = {}
    for (model, method, sampling), own in logs.groupby(level=_KEYS[:3], sort=False):
        base = logs.xs((model, method, _EQUAL), level=_KEYS[:3])
        paired = own.droplevel(_KEYS[:3]) - base
        against = {} if sampling == _EQUAL else {f"{place} − equal": interval(paired[place]) for place in paired}
        rows[model, method, sampling] = {"increase": f"{np.exp(own['geomean'].mean()):.3f}", **against}
    return pd.DataFrame(rows).T.fillna("")


def _lost(sweep: Path) -> pd.DataFrame:
    """Log increase under English less that under equal, languages × methods, mean over seeds."""
    means = _logs([sweep]).groupby(level=["method", "sampling", "language"]).mean()
    english, equal = (means.xs(one, level="sampling") for one in (_ENGLISH, _EQUAL))
    return (english - equal).unstack("method")


def alike(sweeps: list[Path]) -> dict[str, float]:
    """Spearman's correlation, over languages and by method, of what English calibration costs in both families."""
    first, second = (_lost(sweep) for sweep in sweeps)
    return {method: float(first[method].corr(second[method], method="spearman")) for method in first}


def figure(sweeps: list[Path], names: tuple[str, str]) -> Figure:
    """Draw what English calibration costs each language beyond equal, one family against the other."""
    first, second = (_lost(sweep) for sweep in sweeps)
    title = "What English calibration costs beyond equal: 100 × log increase"
    drawn, panels = small_multiples(len(first.columns), title, names[1])
    for axes, method in zip(panels, first.columns, strict=True):
        x, y = 100 * first[method], 100 * second[method].reindex(first.index)
        low, high = min(x.min(), y.min()) - 2, max(x.max(), y.max()) + 2
        axes.plot([low, high], [low, high], color=ASIDE, linewidth=0.8, linestyle=":")
        axes.axhline(0, color=ASIDE, linewidth=0.5)
        axes.axvline(0, color=ASIDE, linewidth=0.5)
        axes.plot(x, y, "o", color=BAR, markersize=4)
        for code in first.index:
            axes.annotate(code, (x[code], y[code]), xytext=(3, 3), textcoords="offset points", fontsize=7)
        axes.set_title(method, fontsize=10)
        axes.set_xlabel(names[0])
    return drawn
