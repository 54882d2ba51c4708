"""The figure of what every stage did when: a bar per part of a block."""

import math

import pandas as pd
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from mbs_ray.errors import InputError
from mbs_ray.report.colours import RUNS
from mbs_ray.report.figures.canvas import new_figure


def stage_timeline(spans: pd.DataFrame) -> Figure:
    """Draw stages (and their replicas) × time, coloured by run; all but computing is pale, waiting is left out.

    `spans` has the columns stage, replica, run, kind, begin and end (seconds).
    """
    if spans.empty:
        raise InputError("the timeline needs at least one span")
    runs = list(dict.fromkeys(spans["run"]))
    start, stop = float(spans["begin"].min()), float(spans["end"].max())
    actors = sorted(set(zip(spans["stage"], spans["replica"], strict=True)))
    rows = {actor: row for row, actor in enumerate(actors)}
    alone = spans["replica"].max() == 0
    names = [f"stage {stage + 1}" if alone else f"stage {stage + 1}.{replica + 1}" for stage, replica in actors]
    figure = new_figure(10.0, 1.6 + 0.5 * len(actors) + 0.2 * math.ceil(len(runs) / 3), "What the stages did")
    axes = figure.add_subplot()
    palette = colormaps[RUNS].colors  # type: ignore[attr-defined]
    colours = {run: palette[index % len(palette)] for index, run in enumerate(runs)}
    shown = spans[spans["kind"] != "waiting"]
    for (stage, replica, run, computing), own in shown.groupby(
        ["stage", "replica", "run", shown["kind"] == "computing"], sort=False
    ):
        bars = list(zip(own["begin"] - start, own["end"] - own["begin"], strict=True))
        height, alpha = (rows[stage, replica] - 0.4, 0.8), 1.0 if computing else 0.4
        axes.broken_barh(bars, height, facecolors=colours[run], alpha=alpha, linewidth=0)
    axes.set(xlim=(0, max(stop - start, 1e-3)), ylim=(len(actors) - 0.5, -0.5), xlabel="seconds")
    axes.set_yticks(range(len(actors)), names)
    handles = [Rectangle((0, 0), 1, 1, facecolor=colours[run]) for run in runs]
    figure.legend(handles, runs, loc="outside lower center", ncols=3, fontsize=7, frameon=False)
    return figure
