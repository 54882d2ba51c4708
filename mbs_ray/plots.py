"""Figures of a sweep, drawn without any global state of matplotlib."""

import math
import os
import textwrap
from collections.abc import Mapping, Sequence
from itertools import groupby, pairwise
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from mbs_ray.errors import InputError

_SUMMARIES = ("geomean", "worst")
_COLOURS = "YlGnBu"  # light is no loss; safe for colour-blind readers, monotone in grey
_BAR = "#2b6a99"
_GAP = 0.3  # of a cell: between methods, and between languages and summaries
_CELL_WIDTH, _CELL_HEIGHT = 0.6, 0.27  # inches
_CHARACTER = 0.085  # inches


def increase_heatmap(increase: pd.DataFrame, title: str) -> Figure:
    """Perplexity compressed ÷ dense, languages × runs, on a logarithmic colour scale.

    Rows are languages, in the order to be drawn; rows named `geomean` and `worst` are set apart at the end.
    Columns are runs: names, or a two-level index of method and sampling, whose methods are set apart.
    A missing value is drawn as a dash. Raises InputError for a value that is no ratio.
    """
    if increase.empty or (increase <= 0).any(axis=None):
        raise InputError(f"{title}: the heatmap needs at least one run, and ratios above zero")
    summaries = [summary for summary in _SUMMARIES if summary in increase.index]
    rows = [str(row) for row in increase.index if row not in _SUMMARIES] + summaries
    runs = [column if isinstance(column, tuple) else ("", column) for column in increase.columns]
    methods, labels = [str(run[0]) for run in runs], [str(run[-1]) for run in runs]
    x, y = _positions(methods), _positions([row in _SUMMARIES for row in rows])

    width = max(4.5, (x[-1] + 1) * _CELL_WIDTH + 2.2)
    height = (y[-1] + 1) * _CELL_HEIGHT + max(map(len, labels)) * _CHARACTER + 1.6
    figure = _figure(width, height, title)
    axes = figure.add_subplot()
    values = increase.loc[rows].to_numpy(dtype=float)
    finite = values[np.isfinite(values)]
    # At least a tenth wide, so that noise around 1 stays pale.
    scale = ScalarMappable(LogNorm(finite.min(initial=1.0), finite.max(initial=1.1)), _COLOURS)
    for row, column in np.ndindex(*values.shape):
        _cell(axes, x[column], y[row], float(values[row, column]), scale, bold=rows[row] in _SUMMARIES)
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


def allocation_bars(allocations: Mapping[str, Mapping[str, int]]) -> Figure:
    """Segments per language, one panel per sampling, on an axis that is linear to 1 and logarithmic above.

    A language that a sampling leaves out is shown with 0 segments.
    """
    languages = list(dict.fromkeys(language for counts in allocations.values() for language in counts))
    if not languages:
        raise InputError("the figure of the allocations needs at least one sampling with one language")
    most = max(max(counts.values(), default=0) for counts in allocations.values())
    width, height = 1.2 + 2.5 * len(allocations), 1.2 + 0.2 * len(languages)
    figure = _figure(width, height, "calibration segments per language")
    panels = figure.subplots(1, len(allocations), sharey=True, sharex=True, squeeze=False)[0]
    for axes, (sampling, counts) in zip(panels, allocations.items(), strict=True):
        segments = [counts.get(language, 0) for language in languages]
        bars = axes.barh(languages, segments, color=_BAR, height=0.75)
        axes.bar_label(bars, labels=[str(count) for count in segments], padding=2, fontsize=7)
        axes.set_title(f"{sampling}\n{sum(segments)} segments", fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
        axes.tick_params(axis="y", length=0)
    panels[0].set_xscale("symlog", linthresh=1)
    panels[0].set_xlim(0, max(most, 1) * 6)  # room for the numbers at the bars
    panels[0].xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panels[0].set_ylim(len(languages) - 0.4, -0.6)
    return figure


def layer_error_heatmap(errors: pd.DataFrame, title: str) -> Figure:
    """Relative layer error, languages × blocks, on a logarithmic colour scale; white where there is none.

    Raises InputError for a negative value.
    """
    if errors.empty or (errors < 0).any(axis=None):
        raise InputError(f"{title}: the heatmap needs at least one block, and errors that are not negative")
    values = errors.to_numpy(dtype=float)
    width, height = max(4.5, 2.2 + 0.22 * len(errors.columns)), 1.4 + _CELL_HEIGHT * len(errors)
    figure = _figure(width, height, title)
    axes = figure.add_subplot()
    positive = values[values > 0]
    lowest = positive.min(initial=1.0)
    scale = LogNorm(lowest, max(positive.max(initial=lowest), 1.1 * lowest))
    shown = np.ma.masked_where(~(values > 0), values)
    mesh = axes.pcolormesh(shown, cmap=_COLOURS, norm=scale, edgecolors="white", linewidth=0.4)
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


def stage_timeline(spans: pd.DataFrame) -> Figure:
    """Stages (and their replicas) × time, coloured by run; what is no computing is drawn pale, waiting not at all.

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
    figure = _figure(10.0, 1.6 + 0.5 * len(actors) + 0.2 * math.ceil(len(runs) / 3), "What the stages did")
    axes = figure.add_subplot()
    palette = colormaps["tab20"].colors  # type: ignore[attr-defined]
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


def save_figure(figure: Figure, path: Path) -> Path:
    """Write the figure as PNG, whole or not at all; equal figures give equal bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        figure.savefig(unfinished, format="png", dpi=150, metadata={"Software": None})
        return unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _figure(width: float, height: float, title: str) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(textwrap.fill(title, int(width / _CHARACTER / 1.2)), fontsize=11)
    return figure


def _positions(groups: Sequence[object]) -> list[float]:
    """One position per item, 1 apart, and `_GAP` further apart where the group changes."""
    changes = np.cumsum([0, *(a != b for a, b in pairwise(groups))])
    return [float(index + _GAP * change) for index, change in enumerate(changes)]


def _cell(axes: Axes, x: float, y: float, value: float, scale: ScalarMappable, bold: bool) -> None:
    missing = math.isnan(value)
    # Clipped because the norm has no colour for an infinite value.
    colour = "white" if missing else scale.to_rgba(np.clip([value], *scale.get_clim()))[0]
    axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=colour, edgecolor="white", linewidth=0.8))
    light = np.dot(to_rgb(colour), (0.299, 0.587, 0.114)) > 0.5
    axes.text(
        x,
        y,
        "–" if missing else _ratio(value),
        ha="center",
        va="center",
        fontsize=8,
        weight="bold" if bold else "normal",
        color="black" if light else "white",
    )


def _ratio(value: float) -> str:
    """Three significant digits, four below 2, in at most five characters."""
    if math.isinf(value):
        return "∞"
    for digits, limit in ((3, 1.9995), (2, 9.995), (1, 99.95), (0, 99_999.5)):
        if value < limit:
            return f"{value:.{digits}f}"
    return f"{value:.0e}".replace("e+0", "e").replace("e+", "e")


def _method_headers(axes: Axes, methods: list[str], x: list[float]) -> None:
    groups = [list(group) for _, group in groupby(range(len(methods)), key=methods.__getitem__)]
    crowded = any(len(methods[group[0]]) * _CHARACTER > len(group) * _CELL_WIDTH for group in groups)
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
