"""A pass of refining, or none: what becomes of perplexity on other text, five seeds, both minis."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from benchmarks.studies.panels import legend_below, small_multiples
from benchmarks.studies.seeds import interval
from benchmarks.studies.study_table import increases, summaries

_SUFFIX = "-refine1"
_PLACES = ("geomean", "worst", "en")
_COLOURS = {"": "#999999", _SUFFIX: "#0072b2"}


def _by_run(sweep: Path) -> pd.DataFrame:
    """Log increases by model, method, whether it was refined, and seed."""
    frame = increases(sweep)
    frame["log"] = np.log(frame["increase"])
    frame["passes"] = np.where(frame["method"].str.endswith(_SUFFIX), _SUFFIX, "")
    frame["method"] = frame["method"].str.removesuffix(_SUFFIX)
    keys = ["model", "method", "passes", "seed"]
    return summaries(frame.set_index([*keys, "language"])["log"], keys)


def table(sweep: Path) -> pd.DataFrame:
    """By model and method: increase without → with a pass, share of log increase saved, paired difference.

    For the geometric mean over languages all of them, for the worst language and English the paired difference. That
    is in per cent of perplexity with its 95 % interval over seeds.
    """
    rows = {}
    logs = _by_run(sweep)
    for (model, method), own in logs.groupby(level=["model", "method"], sort=False):
        before, after = (own.xs((model, method, one), level=("model", "method", "passes")) for one in _COLOURS)
        paired, mean = after - before, (before["geomean"].mean(), after["geomean"].mean())
        rows[model, method] = {
            "perplexity ÷ dense": f"{np.exp(mean[0]):.3f} → {np.exp(mean[1]):.3f}",
            "log increase saved": f"{1 - mean[1] / mean[0]:.0%}",
            **{place: interval(paired[place]) for place in _PLACES},
        }
    return pd.DataFrame(rows).T


def by_language(sweep: Path) -> pd.DataFrame:
    """By model and language: mean over methods and seeds of the log increase, without and with, and what is saved."""
    frame = increases(sweep)
    frame["log"] = np.log(frame["increase"])
    frame["passes"] = np.where(frame["method"].str.endswith(_SUFFIX), "with", "without")
    means = frame.groupby(["model", "language", "passes"], sort=False)["log"].mean().unstack()
    means["saved"] = 1 - means["with"] / means["without"]
    return means


def kept_out(sweep: Path) -> pd.DataFrame:
    """By method and sampling: what a pass changes for languages of the calibration text and for those without any.

    Increase without → with, and the paired difference in per cent of perplexity with its 95 % interval over seeds.
    """
    frame = increases(sweep)
    frame["log"] = np.log(frame["increase"])
    frame["passes"] = np.where(frame["method"].str.endswith(_SUFFIX), _SUFFIX, "")
    frame["method"] = frame["method"].str.removesuffix(_SUFFIX)
    frame["sampling"] = frame["sampling"].where(frame["sampling"] == "monolingual-en", "15 of 20 languages")
    frame["seen"] = np.where(frame["own"] > 0, "calibrated on", "kept out")
    rows = {}
    for key, own in frame.groupby(["method", "sampling", "seen"], sort=False):
        means = own.groupby(["passes", "seed"])["log"].mean().unstack("passes")
        before, after = (np.exp(means[one].mean()) for one in _COLOURS)
        rows[key] = {"perplexity ÷ dense": f"{before:.3f} → {after:.3f}", "mean": interval(means[_SUFFIX] - means[""])}
    return pd.DataFrame(rows).T.sort_index()


def figure(sweep: Path) -> Figure:
    """Increase of the geometric mean and the worst language with and without, by method; a bar's mark is its spread."""
    logs = _by_run(sweep)
    models = list(dict.fromkeys(logs.index.get_level_values("model")))
    canvas, axes = small_multiples(len(models), "A pass of refining: perplexity over dense", "increase in %")
    for model, panel in zip(models, axes, strict=True):
        own = logs.loc[model]
        methods = list(dict.fromkeys(own.index.get_level_values("method")))
        for offset, (passes, colour) in enumerate(_COLOURS.items()):
            part = [own.loc[method, passes]["geomean"] for method in methods]
            heights = [100 * (np.exp(one.mean()) - 1) for one in part]
            spread = [100 * one.std() for one in part]
            places = np.arange(len(methods)) + (offset - 0.5) * 0.4
            label = "with one pass" if passes else "solver alone"
            panel.bar(places, heights, 0.38, yerr=spread, color=colour, label=label, error_kw={"lw": 0.8})
        panel.set_xticks(range(len(methods)), methods, rotation=35, ha="right", fontsize=8)
        panel.set_title(model, fontsize=10)
    legend_below(canvas, columns=2)
    return canvas
