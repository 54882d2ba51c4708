"""The two pictures of the README: what three samplings cost six languages, and the way of the data."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from mbs_ray.report.colours import SAMPLING_COLOURS
from mbs_ray.report.figures.canvas import new_figure

#: Languages of the first picture, with the names that readers know.
LANGUAGES = {"en": "English", "ar": "Arabic", "ta": "Tamil", "ur": "Urdu", "sw": "Swahili", "yo": "Yoruba"}
#: Samplings of the first picture: columns of the table, words of the legend, colours.
SAMPLINGS = {
    "English": ("English alone", SAMPLING_COLOURS["monolingual"]),
    "equal": ("all languages equally", SAMPLING_COLOURS["equal"]),
    "proportional": ("in proportion to the training data", SAMPLING_COLOURS["proportional"]),
}
_METHOD = "sparsegpt 50 %"
_WIDTH = 8.3  # inches: the column of a repository page, at 100 pixels each
_EDGE, _STAGE, _FILES = "#555555", "#e8f1f8", "#f4f1e8"


def read_increases(page: Path) -> dict[str, dict[str, float]]:
    """Return sampling → language → increase of SparseGPT, from the first table of docs/results/demo.md."""
    rows = [line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    head, *body = ([cell.strip() for cell in row.strip("|").split("|")] for row in rows)
    first = next(column for column, name in enumerate(head) if name.startswith(_METHOD))
    cells = {row[0]: row[first : first + len(SAMPLINGS)] for row in body}
    return {
        sampling: {code: float(re.split(r"\s*±", cells[code][at])[0]) for code in LANGUAGES}
        for at, sampling in enumerate(SAMPLINGS)
    }


def increase_bars(increases: Mapping[str, Mapping[str, float]]) -> Figure:
    """Draw the perplexity that is lost, in per cent, a group of bars for each language."""
    figure = new_figure(_WIDTH, 3.6, "Perplexity lost to pruning half of the weights (SparseGPT, mean of five seeds)")
    axes = figure.add_subplot()
    for at, (sampling, (label, colour)) in enumerate(SAMPLINGS.items()):
        lost = [100 * (increases[sampling][code] - 1) for code in LANGUAGES]
        places = [group + 0.28 * (at - 1) for group in range(len(LANGUAGES))]
        bars = axes.bar(places, lost, width=0.26, color=colour, label=label)
        axes.bar_label(bars, labels=[f"{one:.0f} %" for one in lost], padding=2, fontsize=8.5)
    axes.set_xticks(range(len(LANGUAGES)), [f"{name} ({code})" for code, name in LANGUAGES.items()], fontsize=10)
    axes.set_ylim(0, 46)
    axes.set_ylabel("increase over the dense model", fontsize=9)
    axes.yaxis.set_major_formatter("{x:.0f} %")
    axes.tick_params(axis="x", length=0)
    axes.tick_params(axis="y", labelsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    legend = figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9.5, title="calibrated on")
    legend.get_title().set_fontsize(9.5)
    return figure


def data_way() -> Figure:
    """Draw how text and blocks become a checkpoint, a report and runs in MLflow."""
    figure = Figure(figsize=(_WIDTH, 4.4))
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.005, 0.005, 0.99, 0.99))
    axes.set(xlim=(0, 100), ylim=(0, 53))
    axes.set_axis_off()
    solves = "for each of its blocks:\ncollect second moments,\nsolve by the method,\nwrite, propagate"
    for x, y, width, height, name, said, colour in (
        (1, 43, 20, 9, "corpus", "text of each language", _FILES),
        (26, 43, 20, 9, "segments", "pieces of equally\nmany tokens", _FILES),
        (51, 43, 20, 9, "calibration set", "the sampling's number\nof each language", _FILES),
        (76, 43, 23, 9, "dense checkpoint", "read block by block", _FILES),
        (1, 17, 20, 14, "stage 1", solves, _STAGE),
        (26, 17, 20, 14, "stage 2", solves, _STAGE),
        (51, 17, 20, 14, "stage 3", solves, _STAGE),
        (76, 17, 23, 14, "evaluation", "perplexity of every\nlanguage; increase =\ncompressed ÷ dense", _STAGE),
        (1, 1, 70, 9, "run directory", "compressed checkpoint, token scores, reports of blocks, journal", _FILES),
        (76, 1, 23, 9, "report page, MLflow", "one sweep, all its runs", _FILES),
    ):
        _box(axes, (x, y, width, height), name, said, colour)
    for x in (21, 46):
        _arrow(axes, (x, 47.5), (x + 5, 47.5))
    for x in (21, 46, 71):
        _arrow(axes, (x, 24), (x + 5, 24))
    _arrow(axes, (61, 43), (61, 39), (7, 39), (7, 31))
    axes.text(30, 39, "segments of all languages", **_BESIDE)
    for x in (15, 36, 61):
        _arrow(axes, (87, 43), (87, 35), (x, 35), (x, 31))
    axes.text(76, 35, "each stage its own blocks", **_BESIDE)
    for x in (11, 36, 61):
        _arrow(axes, (x, 17), (x, 10))
    axes.text(23.5, 13.5, "compressed blocks", **_BESIDE)
    _arrow(axes, (80, 17), (80, 13.5), (68, 13.5), (68, 10))
    _arrow(axes, (71, 5.5), (76, 5.5))
    return figure


_BESIDE: dict[str, Any] = {"fontsize": 8.2, "ha": "center", "va": "center", "backgroundcolor": "white"}


def _box(axes: Axes, place: tuple[float, float, float, float], name: str, said: str, colour: str) -> None:
    """Draw a box at x, y of a width and height, its name above what is said of it."""
    x, y, width, height = place
    shape = "round,pad=0,rounding_size=1"
    axes.add_patch(
        FancyBboxPatch((x, y), width, height, boxstyle=shape, facecolor=colour, edgecolor=_EDGE, linewidth=0.9)
    )
    middle = x + width / 2
    axes.text(middle, y + height - 2.2, name, ha="center", va="center", fontsize=10, weight="bold")
    axes.text(middle, y + (height - 3.4) / 2, said, ha="center", va="center", fontsize=8.4, linespacing=1.15)


def _arrow(axes: Axes, *corners: tuple[float, float]) -> None:
    """Draw a line through the corners that ends in an arrow."""
    xs, ys = zip(*corners, strict=True)
    axes.plot(xs[:-1], ys[:-1], color=_EDGE, linewidth=1.1)
    axes.annotate(
        "", corners[-1], corners[-2], arrowprops={"arrowstyle": "-|>", "color": _EDGE, "linewidth": 1.1, "shrinkA": 0}
    )
