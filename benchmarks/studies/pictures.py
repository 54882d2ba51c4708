"""Panels side by side, one per method, in the colours of the samplings."""

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mbs_ray.ui_views import OTHER_SAMPLING, SAMPLING_COLOURS


def small_multiples(count: int, title: str, y: str, height: float = 3.8) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(max(5.0, 4.6 * count), height), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=11)
    axes = figure.subplots(1, count, squeeze=False)[0]
    axes[0].set_ylabel(y)
    for panel in axes:
        panel.spines[["top", "right"]].set_visible(False)
    return figure, list(axes)


def sampling_colour(label: str) -> str:
    return next((colour for name, colour in SAMPLING_COLOURS.items() if label.startswith(name)), OTHER_SAMPLING)
