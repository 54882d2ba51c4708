"""Relative layer error, languages × blocks."""

import math

import numpy as np
import pandas as pd
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from mbs_ray.errors import InputError
from mbs_ray.report.colours import LOSSES
from mbs_ray.report.figures.canvas import new_figure, wrapped
from mbs_ray.report.figures.increase_heatmap import CELL_HEIGHT


def layer_error_heatmap(errors: pd.DataFrame, title: str) -> Figure:
    """Draw the relative layer error, languages × blocks, on a logarithmic colour scale; white where there is none.

    Raises InputError for a negative value.
    """
    if errors.empty or (errors < 0).any(axis=None):
        raise InputError(f"{title}: the heatmap needs at least one block, and errors that are not negative")
    values = errors.to_numpy(dtype=float)
    width, height = max(4.5, 2.2 + 0.22 * len(errors.columns)), 1.4 + CELL_HEIGHT * len(errors)
    figure = new_figure(width, height, wrapped(title, width))
    axes = figure.add_subplot()
    positive = values[values > 0]
    lowest = positive.min(initial=1.0)
    scale = LogNorm(lowest, max(positive.max(initial=lowest), 1.1 * lowest))
    shown = np.ma.masked_where(~(values > 0), values)
    mesh = axes.pcolormesh(shown, cmap=LOSSES, norm=scale, edgecolors="white", linewidth=0.4)
    axes.invert_yaxis()
    axes.set_yticks(np.arange(len(errors)) + 0.5, [str(language) for language in errors.index])
    step = math.ceil(len(errors.columns) / 24)
    axes.set_xticks(np.arange(len(errors.columns))[::step] + 0.5, [str(block) for block in errors.columns[::step]])
    axes.set_xlabel("block")
    axes.tick_params(length=0, labelsize=8)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(mesh, ax=axes, fraction=0.05, pad=0.02, aspect=30)
    bar.set_label("Σ‖ΔWx‖² ÷ Σ‖Wx‖²")
    bar.ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    bar.ax.yaxis.set_minor_locator(NullLocator())
    return figure
