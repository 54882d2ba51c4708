"""Fitted to the dense model, or not: what becomes of perplexity on other text, five seeds, both minis."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from benchmarks.studies import paired
from benchmarks.studies.study_table import increases
from mbs_ray.run.spec import PROPAGATED

_SUFFIX = "-refine1"
#: Beside this sweep: the same runs fitted and refined.
_TOGETHER = "fit-and-refine"
BOTH = "both"


def _frame(sweep: Path) -> pd.DataFrame:
    frame = increases(sweep)
    way = np.where(frame["fit"] == PROPAGATED, paired.WITHOUT, paired.WITH)
    return frame.assign(log=np.log(frame["increase"]), way=way)


def _together(sweep: Path) -> pd.DataFrame:
    """The runs that are fitted and refined; empty where that sweep has not been run."""
    beside = sweep.parent / _TOGETHER
    frame = increases(beside)
    if frame.empty:
        return frame
    return frame.assign(log=np.log(frame["increase"]), way=BOTH, method=frame["method"].str.removesuffix(_SUFFIX))


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
    ways = {
        paired.WITHOUT: ("#999999", "method alone"),
        paired.WITH: ("#56b4e9", "fit_to: dense"),
        BOTH: ("#0072b2", "fit_to: dense, refine: 1"),
    }
    frame = pd.concat([_frame(sweep), _together(sweep)])
    return paired.figure(frame, "Fitted to the dense model: perplexity over dense", ways)
