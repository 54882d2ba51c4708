"""The figure of a comparison: a ratio and its interval for each language."""

import math
import textwrap
from collections.abc import Mapping

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from mbs_ray.evaluation.comparison import Difference

# Colours that colour-blind readers tell apart (Okabe and Ito, Color Universal Design, 2008).
_COLOURS = {"B is worse": "#d55e00", "B is better": "#0072b2"}
_NOISE = "#888888"
_WIDTH, _ROW = 6.5, 0.26  # inches


def difference_forest(differences: Mapping[str, Difference], title: str) -> Figure:
    """Perplexity of B over A with its interval, a row per language and ``geomean`` below, set apart.

    The axis is logarithmic: half and double are equally far from 1.
    """
    rows = [position + (name == "geomean") * 0.4 for position, name in enumerate(differences)]
    figure = Figure(figsize=(_WIDTH, 1.5 + _ROW * (rows[-1] + 1)), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(textwrap.fill(title, 64, break_on_hyphens=False), fontsize=11)
    axes = figure.add_subplot()
    axes.set_xscale("log")
    axes.axvline(1.0, color="black", linewidth=0.8)
    for row, (name, one) in zip(rows, differences.items(), strict=True):
        colour = _COLOURS.get(one.verdict, _NOISE)
        if not math.isfinite(one.ratio):
            axes.text(1, row, "∞" if one.ratio > 1 else "–", transform=axes.get_yaxis_transform(), va="center")
            continue
        if one.ratio_interval is not None and math.isfinite(one.ratio_interval.high):
            axes.plot(one.ratio_interval, (row, row), color=colour, linewidth=2, solid_capstyle="butt")
        axes.plot([one.ratio], [row], "D" if name == "geomean" else "o", color=colour, markersize=5)
    axes.set_yticks(rows, list(differences))
    axes.set_ylim(rows[-1] + 0.6, -0.6)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(FuncFormatter(lambda *_: ""))
    axes.minorticks_off()
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("perplexity, B ÷ A, with its 95 % interval; grey: within noise", fontsize=9)
    return figure
