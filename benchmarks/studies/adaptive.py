"""Mixtures found by trial against fixed ones: what they do to the mean, the worst language, and English."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from benchmarks.studies.panels import legend_below, small_multiples
from benchmarks.studies.seeds import interval
from benchmarks.studies.study_table import increases, summaries

_KEYS = ["model", "method", "sampling", "seed"]
_SUMMARIES = ("geomean", "worst", "en")


def table(sweeps: list[Path]) -> pd.DataFrame:
    """By model, method and sampling: mean over seeds of each summary over the dense model, and every adaptive sampling
    less this one in 100 × log (± half of the 95 % interval, paired by seed)."""
    logs = _summaries(sweeps)
    rows = {}
    for (model, method, sampling), own in logs.groupby(level=_KEYS[:3], sort=False):
        means = np.exp(own.mean())
        row = {"÷ dense model": " / ".join(f"{means[column]:.3f}" for column in _SUMMARIES)}
        for name in _adaptive(logs):
            paired = logs.xs((model, method, name), level=_KEYS[:3]) - own.droplevel(_KEYS[:3])
            row |= {f"{name}: {column}": "" if name == sampling else interval(paired[column]) for column in _SUMMARIES}
        rows[model, method, sampling] = row
    return pd.DataFrame.from_dict(rows, orient="index")


def verdicts(sweeps: list[Path]) -> pd.DataFrame:
    """Against each fixed sampling, over the pairs of model and method: won / within noise / lost, by summary."""
    logs = _summaries(sweeps)
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for name in _adaptive(logs):
        for fixed in dict.fromkeys(logs.index.get_level_values("sampling")):
            if fixed in _adaptive(logs):
                continue
            paired = logs.xs(name, level="sampling") - logs.xs(fixed, level="sampling")
            told = paired.groupby(level=["model", "method"]).agg(interval)
            outcomes = {
                column: ["noise" if "noise" in one else one[0] for one in told[column]] for column in _SUMMARIES
            }
            rows[name, fixed] = {
                column: " / ".join(str(own.count(kind)) for kind in ("-", "noise", "+"))
                for column, own in outcomes.items()
            }
    return pd.DataFrame.from_dict(rows, orient="index")


def prediction(sweep: Path) -> pd.DataFrame:
    """Spearman's ρ of what was predicted and what was measured, over the languages of a run, mean over runs.

    *level*: the increase of a language under equal sampling. *change*: how it differs under proportional sampling.
    """
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    measured = increases(sweep)
    measured["log"] = np.log(measured["increase"])
    for path in sorted(sweep.glob("runs/*adaptive-regret*/search.json")):
        spec = json.loads((path.parent / "spec.json").read_text())
        trials = [pd.Series(one["increase"]) for one in json.loads(path.read_text())["trials"][:2]]
        own = measured[(measured["model"] == Path(spec["model"]).name) & (measured["seed"] == spec["seed"])]
        label = next(one for one in own["method"].unique() if f"{one}-" in path.parent.name)
        own = own[own["method"] == label]
        equal, proportional = (
            own[own["sampling"] == name].set_index("language")["log"] for name in ("equal", "proportional")
        )
        codes = equal.index
        level = spearmanr(trials[0][codes], equal).statistic
        change = spearmanr((trials[1] / trials[0])[codes], (proportional / equal)[codes]).statistic
        found.setdefault((Path(spec["model"]).name, label), []).append((level, change))
    means = {key: [f"{value:+.2f}" for value in np.mean(pairs, axis=0)] for key, pairs in found.items()}
    return pd.DataFrame.from_dict(means, orient="index", columns=["level", "change"])


def figure(sweeps: list[Path]) -> Figure:
    """Geometric mean against English, the two ends of the trade; the size of a point is the worst language."""
    means = 100 * (np.exp(_summaries(sweeps).groupby(level=_KEYS[:3], sort=False).mean()) - 1)
    panels = list(dict.fromkeys((model, method) for model, method, _ in means.index))
    canvas, axes = small_multiples(
        len(panels), "Mixtures found by trial, and fixed ones", "geometric mean, % over dense"
    )
    for (model, method), panel in zip(panels, axes, strict=True):
        own = means.xs((model, method), level=("model", "method"))
        own = own[own.index != "monolingual-en"]
        for name, row in own.iterrows():
            marker = "*" if str(name).startswith("adaptive") else "o"
            panel.scatter(row["en"], row["geomean"], s=8 * row["worst"], marker=marker, alpha=0.7, label=str(name))
        panel.set_xlabel("English, % over dense")
        panel.set_title(f"{model.removeprefix('bloom-')}, {method}", fontsize=10)
    legend_below(canvas, columns=4)
    return canvas


def _adaptive(logs: pd.DataFrame) -> list[str]:
    names = dict.fromkeys(logs.index.get_level_values("sampling"))
    return [name for name in names if name.startswith("adaptive")]


def _summaries(sweeps: list[Path]) -> pd.DataFrame:
    """Log increases: mean over languages, the largest, and English, by model, method, sampling and seed."""
    frame = pd.concat([increases(sweep) for sweep in sweeps], ignore_index=True)
    frame["log"] = np.log(frame["increase"])
    return summaries(frame.set_index([*_KEYS, "language"])["log"], _KEYS)
