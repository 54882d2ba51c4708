"""The figure of a comparison: a ratio and its interval for each language."""

import math
import textwrap
from collections.abc import Mapping

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from mbs_ray.evaluation.comparison import Difference
from mbs_ray.evaluation.metric_names import SUMMARIES
from mbs_ray.report.colours import BETTER, GRID, NOISE, WORSE
from mbs_ray.report.figures.canvas import new_figure

_COLOURS = {"B is worse": WORSE, "B is better": BETTER}
_WIDTH, _ROW = 6.5, 0.26  # inches


def difference_forest(differences: Mapping[str, Difference], title: str) -> Figure:
    """Draw the perplexity of B over A with its interval, a row per language and the summaries below, set apart.

    The axis is logarithmic: half and double are equally far from 1.
    """
    rows = [position + (name in SUMMARIES) * 0.4 for position, name in enumerate(differences)]
    # The names of runs in the title are full of hyphens.
    shown = textwrap.fill(title, 64, break_on_hyphens=False)
    figure = new_figure(_WIDTH, 1.5 + _ROW * (rows[-1] + 1), shown)
    axes = figure.add_subplot()
    axes.set_xscale("log")
    axes.axvline(1.0, color="black", linewidth=0.8)
    for row, (name, one) in zip(rows, differences.items(), strict=True):
        colour = _COLOURS.get(one.verdict, NOISE)
        if not math.isfinite(one.ratio):
            axes.text(1, row, "∞" if one.ratio > 1 else "–", transform=axes.get_yaxis_transform(), va="center")
            continue
        if one.ratio_interval is not None and math.isfinite(one.ratio_interval.high):
            axes.plot(one.ratio_interval, (row, row), color=colour, linewidth=2, solid_capstyle="butt")
        axes.plot([one.ratio], [row], "D" if name in SUMMARIES else "o", color=colour, markersize=5)
    axes.set_yticks(rows, list(differences))
    axes.set_ylim(rows[-1] + 0.6, -0.6)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(FuncFormatter(lambda *_: ""))
    axes.minorticks_off()
    axes.grid(axis="x", color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("perplexity, B ÷ A, with its 95 % interval; grey: within noise", fontsize=9)
    return figure
