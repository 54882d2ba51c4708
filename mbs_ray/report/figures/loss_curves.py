"""The figure of the loss of every block, run by run."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from mbs_ray.report.colours import GRID, OTHER_SAMPLING, SAMPLING_COLOURS
from mbs_ray.report.figures.canvas import new_figure
from mbs_ray.report.run_results import RunResults

_PANEL_WIDTH, _HEIGHT = 3.0, 3.2  # inches
_STYLES = ("-", "--", ":", "-.")


def loss_curves(runs: Sequence[RunResults]) -> Figure:
    """Draw loss over blocks on a logarithmic axis: a panel per method, a colour per kind of sampling, a line per run.

    Samplings of one kind (two temperatures) differ in their style; seeds of one sampling do not.
    """
    methods = list(dict.fromkeys(run.facts.method for run in runs))
    styles = _styles(runs)
    figure = new_figure(1.0 + _PANEL_WIDTH * max(len(methods), 2), _HEIGHT)
    panels = figure.subplots(1, len(methods), sharey=len({run.loss_name for run in runs}) == 1, squeeze=False)[0]
    for axes, method in zip(panels, methods, strict=True):
        own = [run for run in runs if run.facts.method == method]
        for run in own:
            colour = SAMPLING_COLOURS.get(run.facts.sampling_name, OTHER_SAMPLING)
            line = {"color": colour, "linestyle": styles[run.facts.sampling], "linewidth": 1.4, "markersize": 3}
            axes.plot(list(run.losses), list(run.losses.values()), marker="o", **line)
        axes.set_title(method, fontsize=9)
        axes.set_xlabel("block", fontsize=8)
        if all(value > 0 for run in own for value in run.losses.values()):
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.tick_params(labelsize=8)
        axes.grid(color=GRID, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel(runs[0].loss_name, fontsize=8)
    kinds = {run.facts.sampling: run.facts.sampling_name for run in runs}
    handles = [
        Line2D([], [], color=SAMPLING_COLOURS.get(kind, OTHER_SAMPLING), linestyle=styles[sampling], label=sampling)
        for sampling, kind in kinds.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return figure


def _styles(runs: Sequence[RunResults]) -> Mapping[str, str]:
    of_kind: dict[str, list[str]] = {}
    for run in runs:
        own = of_kind.setdefault(run.facts.sampling_name, [])
        if run.facts.sampling not in own:
            own.append(run.facts.sampling)
    return {one: _STYLES[place % len(_STYLES)] for own in of_kind.values() for place, one in enumerate(own)}
