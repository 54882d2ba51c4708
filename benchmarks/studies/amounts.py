"""Amounts dealt out over linears, or the same in all: what becomes of perplexity, five seeds, both minis."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from benchmarks.studies import paired
from benchmarks.studies.study_table import increases
from mbs_ray.run.modes import PROPAGATED, UNIFORM

_WAYS = {
    UNIFORM: ("#999999", "the same in all"),
    "ramp": ("#e69f00", "budget: ramp"),
    "increase": ("#56b4e9", "budget: increase"),
    "fitted": ("#009e73", "fit_to: dense, refine: 1"),
    "together": ("#0072b2", "all three"),
}


def _runs(results: Path, sweep: str) -> pd.DataFrame:
    frame = increases(results / sweep)
    if frame.empty:
        return frame
    method = frame["method"].str.removesuffix("-refine1")
    return frame.assign(log=np.log(frame["increase"]), way=frame["budget"], method=method)


def _alone(results: Path, sweep: str = "fit-to-dense") -> pd.DataFrame:
    """Runs with nothing but the method, whose text is that of the runs here."""
    frame = _runs(results, sweep)
    return frame[frame["fit"] == PROPAGATED]


def _against(before: pd.DataFrame, after: pd.DataFrame) -> pd.DataFrame:
    return pd.concat([before.assign(way=paired.WITHOUT), after.assign(way=paired.WITH)])


def tables(results: Path) -> dict[str, pd.DataFrame]:
    """Tables by what is compared; those whose sweeps have not been run are missing."""
    alone, dealt = _alone(results), _runs(results, "budgets")
    found = {
        f"{rule} against the same in all": paired.table(_against(alone, dealt[dealt["way"] == rule]))
        for rule in dealt["way"].unique()
    }
    if not (together := _runs(results, "budget-fit-refine")).empty:
        found["all three against none"] = paired.table(_against(alone, together))
        found["all three against fitted and refined"] = paired.table(
            _against(_runs(results, "fit-and-refine"), together)
        )
    if not (bits := _runs(results, "budget-of-bits")).empty:
        whole, half = bits[bits["way"] == "increase"], bits[bits["way"] != "increase"]
        found["3 bits on average"] = paired.table(_against(alone, whole))
        ramp, increase = (half[half["way"] == f"{rule}-2.5bit"] for rule in ("ramp", "increase"))
        found["2.5 bits on average, increase against ramp"] = paired.table(_against(ramp, increase))
    if not (four := _runs(results, "budget-of-four-bits")).empty:
        found["4 bits on average"] = paired.table(_against(alone, four))
    if not (clipped := _runs(results, "clip-fit-refine")).empty:
        plain = clipped.assign(method=clipped["method"].str.removesuffix("-clip"))
        for fit in plain["fit"].unique():
            found[f"clip_search, fit_to {fit}"] = paired.table(_against(alone, plain[plain["fit"] == fit]))
    if not (kept := _runs(results, "budget-kept-out")).empty:
        before = _alone(results, "fit-kept-out")
        found["kept out"] = paired.kept_out(_against(before[before["method"].isin(kept["method"])], kept))
    return found


def figure(results: Path) -> Figure:
    """Increase of the geometric mean by method, a bar for each recipe."""
    dealt = _runs(results, "budgets")
    frames = [
        _alone(results),
        dealt[dealt["way"].isin(_WAYS)],
        _runs(results, "fit-and-refine").assign(way="fitted"),
        _runs(results, "budget-fit-refine").assign(way="together"),
    ]
    frame = pd.concat(frames)
    frame = frame[frame["method"].isin(dealt["method"].unique())]
    return paired.figure(frame, "Sparsity dealt out over linears: perplexity over dense", _WAYS)
