"""A pass of refining, or none: what becomes of perplexity on other text, five seeds, both minis."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from benchmarks.studies import paired
from benchmarks.studies.study_table import increases

_SUFFIX = "-refine1"


def _frame(sweep: Path) -> pd.DataFrame:
    frame = increases(sweep)
    refined = frame["method"].str.endswith(_SUFFIX)
    way = np.where(refined, paired.WITH, paired.WITHOUT)
    return frame.assign(log=np.log(frame["increase"]), way=way, method=frame["method"].str.removesuffix(_SUFFIX))


def table(sweep: Path) -> pd.DataFrame:
    return paired.table(_frame(sweep))


def by_language(sweep: Path) -> pd.DataFrame:
    return paired.by_language(_frame(sweep))


def kept_out(sweep: Path) -> pd.DataFrame:
    return paired.kept_out(_frame(sweep))


def figure(sweep: Path) -> Figure:
    ways = {paired.WITHOUT: ("#999999", "solver alone"), paired.WITH: ("#0072b2", "with one pass")}
    return paired.figure(_frame(sweep), "A pass of refining: perplexity over dense", ways)
