"""Runs with something and runs without it, paired by seed: tables and a figure of what it changes.

A frame here has the columns of :func:`~benchmarks.studies.study_table.increases`, ``log`` of the increase, and ``way``.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from benchmarks.studies.panels import legend_below, small_multiples
from benchmarks.studies.seeds import interval
from benchmarks.studies.study_table import summaries

WITHOUT, WITH = "without", "with"
_KEYS = ["model", "method", "way", "seed"]
_PLACES = ("geomean", "worst", "en")


def logs_by_run(frame: pd.DataFrame) -> pd.DataFrame:
    """Log increases by model, method, way and seed: mean over languages, the worst, English."""
    return summaries(frame.set_index([*_KEYS, "language"])["log"], _KEYS)


def table(frame: pd.DataFrame) -> pd.DataFrame:
    """By model and method: increase without → with, share of log increase saved, paired difference.

    For the geometric mean over languages all of them, for the worst language and English the paired difference. That
    is in per cent of perplexity with its 95 % interval over seeds.
    """
    rows = {}
    logs = logs_by_run(frame)
    for (model, method), own in logs.groupby(level=["model", "method"], sort=False):
        ways = set(own.index.get_level_values("way"))
        if not {WITHOUT, WITH} <= ways:
            continue
        before, after = (own.xs((model, method, one), level=("model", "method", "way")) for one in (WITHOUT, WITH))
        paired, mean = after - before, (before["geomean"].mean(), after["geomean"].mean())
        rows[model, method] = {
            "perplexity ÷ dense": f"{np.exp(mean[0]):.3f} → {np.exp(mean[1]):.3f}",
            "log increase saved": f"{1 - mean[1] / mean[0]:.0%}",
            **{place: interval(paired[place].dropna()) for place in _PLACES},
        }
    return pd.DataFrame(rows).T


def by_language(frame: pd.DataFrame) -> pd.DataFrame:
    """By model and language: mean over methods and seeds of the log increase, without and with, and what is saved."""
    means = frame.groupby(["model", "language", "way"], sort=False)["log"].mean().unstack()
    means["saved"] = 1 - means[WITH] / means[WITHOUT]
    return means


def kept_out(frame: pd.DataFrame) -> pd.DataFrame:
    """By method and sampling: what changes for languages of the calibration text and for those without any.

    Increase without → with, and the paired difference in per cent of perplexity with its 95 % interval over seeds.
    """
    sampling = frame["sampling"].where(frame["sampling"] == "monolingual-en", "15 of 20 languages")
    seen = np.where(frame["own"] > 0, "calibrated on", "kept out")
    rows = {}
    for key, own in frame.assign(sampling=sampling, seen=seen).groupby(["method", "sampling", "seen"], sort=False):
        means = own.groupby(["way", "seed"])["log"].mean().unstack("way")
        before, after = (np.exp(means[one].mean()) for one in (WITHOUT, WITH))
        changed = interval(means[WITH] - means[WITHOUT])
        rows[key] = {"perplexity ÷ dense": f"{before:.3f} → {after:.3f}", "mean": changed}
    return pd.DataFrame(rows).T.sort_index()


def figure(frame: pd.DataFrame, title: str, ways: Mapping[str, tuple[str, str]]) -> Figure:
    """Increase of the geometric mean by method, in bars side by side; a bar's mark is the spread of its seeds.

    ``ways``: colour and label of each way.
    """
    logs = logs_by_run(frame).sort_index()
    models = list(dict.fromkeys(logs.index.get_level_values("model")))
    canvas, axes = small_multiples(len(models), title, "increase in %")
    for model, panel in zip(models, axes, strict=True):
        own = logs.loc[model]
        methods = list(dict.fromkeys(own.index.get_level_values("method")))
        width = 0.8 / len(ways)
        for offset, (way, (colour, label)) in enumerate(ways.items()):
            there = [(place, method) for place, method in enumerate(methods) if (method, way) in own.index.droplevel(2)]
            part = [own.loc[method, way]["geomean"] for _, method in there]
            heights = [100 * (np.exp(one.mean()) - 1) for one in part]
            spread = [100 * one.std() for one in part]
            places = np.array([place for place, _ in there]) + (offset - (len(ways) - 1) / 2) * width
            panel.bar(places, heights, width * 0.95, yerr=spread, color=colour, label=label, error_kw={"lw": 0.8})
        panel.set_xticks(range(len(methods)), methods, rotation=35, ha="right", fontsize=8)
        panel.set_title(model, fontsize=10)
    legend_below(canvas, columns=len(ways))
    return canvas
