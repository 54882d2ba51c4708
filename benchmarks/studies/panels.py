"""Panels side by side, one per method, in the colours of the samplings."""

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mbs_ray.report.colours import OTHER_SAMPLING, SAMPLING_COLOURS


def small_multiples(count: int, title: str, y: str, height: float = 3.8) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(10.0, height), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=11)
    axes = figure.subplots(1, count, squeeze=False)[0]
    axes[0].set_ylabel(y)
    for panel in axes:
        panel.spines[["top", "right"]].set_visible(False)
    return figure, list(axes)


def legend_below(figure: Figure, columns: int) -> None:
    """What the first panel labels, under all panels: inside one it would hide points."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=9, frameon=False)


def sampling_colour(label: str) -> str:
    return next((colour for name, colour in SAMPLING_COLOURS.items() if label.startswith(name)), OTHER_SAMPLING)
