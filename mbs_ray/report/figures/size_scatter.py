"""The figure of what runs lost at what size."""

import math
from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from mbs_ray.evaluation.metric_names import GEOMEAN, MetricNames
from mbs_ray.report.colours import GRID, OTHER_SAMPLING, SAMPLING_COLOURS
from mbs_ray.report.figures.canvas import new_figure
from mbs_ray.report.run_results import RunResults

_WIDTH, _HEIGHT = 6.5, 4.0  # inches
_MARKERS = "osD^vP*Xd<>"


def size_scatter(runs: Sequence[RunResults]) -> Figure | None:
    """Draw the mean increase over bits per weight, a marker per method and a colour per kind of sampling.

    The increase is on a logarithmic axis, so that distances are differences of nll. Runs whose size is not known, or
    whose increase is not finite, are left out; None where none is left.
    """
    places = {run.facts.label: place for run in runs if (place := _place(run)) is not None}
    drawn = [run for run in runs if run.facts.label in places]
    if not drawn:
        return None
    methods = list(dict.fromkeys(run.facts.method for run in drawn))
    markers = {method: _MARKERS[at % len(_MARKERS)] for at, method in enumerate(methods)}
    figure = new_figure(_WIDTH, _HEIGHT)
    axes = figure.add_subplot()
    for run in drawn:
        colour = SAMPLING_COLOURS.get(run.facts.sampling_name, OTHER_SAMPLING)
        bits, increase = places[run.facts.label]
        axes.plot([bits], [increase], markers[run.facts.method], color=colour, markersize=6, alpha=0.8)
    axes.set_yscale("log")
    narrow = max(increase for _, increase in places.values()) < 2.0
    axes.yaxis.set_major_locator(MaxNLocator(6) if narrow else LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("bits per weight of the compressed linears", fontsize=9)
    axes.set_ylabel("perplexity, compressed ÷ dense", fontsize=9)
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    kinds = dict.fromkeys(run.facts.sampling_name for run in drawn)
    handles = [Line2D([], [], marker=markers[one], linestyle="", color="0.3", label=one) for one in methods]
    handles += [
        Line2D([], [], linewidth=5, color=SAMPLING_COLOURS.get(kind, OTHER_SAMPLING), label=kind) for kind in kinds
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return figure


def _place(run: RunResults) -> tuple[float, float] | None:
    increase = (run.metrics or {}).get(MetricNames().increase(GEOMEAN))
    if run.size is None or increase is None or not math.isfinite(increase) or increase <= 0:
        return None
    return run.size.least, increase
