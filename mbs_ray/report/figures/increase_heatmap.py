"""Figures of a sweep, drawn without any global state of matplotlib."""

import math
from collections.abc import Sequence
from itertools import groupby, pairwise

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from mbs_ray.errors import InputError
from mbs_ray.evaluation.metric_names import SUMMARIES
from mbs_ray.report.colours import LOSSES
from mbs_ray.report.figures.canvas import CHARACTER, ink_on, new_figure, wrapped
from mbs_ray.report.increase_table import SeedSpread

_GAP = 0.3  # of a cell: between methods, and between languages and summaries
_CELL_WIDTH, CELL_HEIGHT, _TWO_LINES = 0.6, 0.27, 0.4  # inches


def increase_heatmap(increase: pd.DataFrame, title: str, spread: SeedSpread | None = None) -> Figure:
    """Draw perplexity compressed ÷ dense, languages × runs, on a logarithmic colour scale.

    Rows are languages, in the order to be drawn; those of summaries (`geomean`, `worst`, groups) are set apart below.
    Columns are runs: names, or a two-level index of method and sampling, whose methods are set apart.
    A missing value is drawn as a dash; the ``spread`` over seeds stands under its mean. Raises InputError for a value
    that is no ratio.
    """
    if increase.empty or (increase <= 0).any(axis=None):
        raise InputError(f"{title}: the heatmap needs at least one run, and ratios above zero")
    summaries = [summary for summary in SUMMARIES if summary in increase.index]
    rows = [str(row) for row in increase.index if row not in SUMMARIES] + summaries
    runs = [column if isinstance(column, tuple) else ("", column) for column in increase.columns]
    methods, labels = [str(run[0]) for run in runs], [str(run[-1]) for run in runs]
    if spread is not None:
        labels = [spread.sampling((method, sampling)) for method, sampling in runs]
    x, y = _positions(methods), _positions([row in SUMMARIES for row in rows])

    width = max(4.5, (x[-1] + 1) * _CELL_WIDTH + 2.2)
    height = (y[-1] + 1) * (CELL_HEIGHT if spread is None else _TWO_LINES) + max(map(len, labels)) * CHARACTER + 1.6
    figure = new_figure(width, height, wrapped(title, width))
    axes = figure.add_subplot()
    values = increase.loc[rows].to_numpy(dtype=float)
    finite = values[np.isfinite(values)]
    # At least a tenth wide, so that noise around 1 stays pale.
    scale = ScalarMappable(LogNorm(finite.min(initial=1.0), finite.max(initial=1.1)), LOSSES)
    for row, column in np.ndindex(*values.shape):
        under = "" if spread is None else spread.text(rows[row], runs[column])
        _cell(axes, x[column], y[row], float(values[row, column]), scale, rows[row] in SUMMARIES, under)
    axes.set(xlim=(-0.5, x[-1] + 0.5), ylim=(y[-1] + 0.5, -0.5))
    axes.set_xticks(x, labels, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(y, rows)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    _method_headers(axes, methods, x)
    bar = figure.colorbar(scale, ax=axes, fraction=0.05, pad=0.02, aspect=30)
    bar.set_label("perplexity, compressed ÷ dense")
    narrow = finite.max(initial=1.1) < 2.0
    bar.ax.yaxis.set_major_locator(MaxNLocator(5) if narrow else LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 5.0)))
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    bar.ax.yaxis.set_minor_locator(NullLocator())
    return figure


def _positions(groups: Sequence[object]) -> list[float]:
    """Place items 1 apart, and `_GAP` further apart where the group changes."""
    changes = np.cumsum([0, *(a != b for a, b in pairwise(groups))])
    return [float(index + _GAP * change) for index, change in enumerate(changes)]


def _cell(axes: Axes, x: float, y: float, value: float, scale: ScalarMappable, bold: bool, under: str) -> None:
    missing = math.isnan(value)
    # Clipped because the norm has no colour for an infinite value.
    colour = "white" if missing else scale.to_rgba(np.clip([value], *scale.get_clim()))[0]
    axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=colour, edgecolor="white", linewidth=0.8))
    axes.text(
        x,
        y,
        "–" if missing else f"{_ratio(value)}\n{under}".strip(),
        ha="center",
        va="center",
        fontsize=8,
        weight="bold" if bold else "normal",
        color=ink_on(to_rgb(colour)),
    )


def _ratio(value: float) -> str:
    """Format a ratio with three significant digits, four below 2, in at most five characters."""
    if math.isinf(value):
        return "∞"
    for digits, limit in ((3, 1.9995), (2, 9.995), (1, 99.95), (0, 99_999.5)):
        if value < limit:
            return f"{value:.{digits}f}"
    return f"{value:.0e}".replace("e+0", "e").replace("e+", "e")


def _method_headers(axes: Axes, methods: list[str], x: list[float]) -> None:
    groups = [list(group) for _, group in groupby(range(len(methods)), key=methods.__getitem__)]
    crowded = any(len(methods[group[0]]) * CHARACTER > len(group) * _CELL_WIDTH for group in groups)
    for group in groups:
        axes.text(
            (x[group[0]] + x[group[-1]]) / 2,
            -0.7,
            methods[group[0]],
            ha="left" if crowded else "center",
            va="bottom",
            rotation=30 if crowded else 0,
            rotation_mode="anchor",
            weight="bold",
            fontsize=9,
        )
