"""Figures of how similar languages are to a model."""

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy.cluster.hierarchy import dendrogram

from mbs_ray.report.colours import ANGLES, ASIDE, BLUE, GREEN, TREE, VERMILION
from mbs_ray.report.figures.canvas import ink_on, new_figure

_CELL = 0.34  # inches
_MOST_NUMBERS = 30  # languages; with more of them the numbers in the cells could not be read


def similarity_heatmap(degrees: pd.DataFrame, halves: pd.Series, links: npt.NDArray[np.float64], title: str) -> Figure:
    """Draw the angles between languages, in the order of their clusters, next to the tree that joins them.

    ``degrees`` are symmetric, languages × languages; ``links`` are scipy's linkage of them. The diagonal shows, on
    white, the angles between the ``halves`` of each language's text.
    """
    # Without drawing: scipy would load pyplot for it.
    tree = dendrogram(links, no_plot=True)
    ordered = degrees.iloc[tree["leaves"], tree["leaves"]]
    languages, values = list(ordered.index), ordered.to_numpy()
    side = max(2.4, _CELL * len(languages))
    figure = new_figure(side + 3.0, side + 0.9, title)
    joins, cells = figure.subplots(1, 2, width_ratios=(1.3, side))

    for across, away in zip(tree["dcoord"], tree["icoord"], strict=True):
        # scipy puts the leaves at 5, 15, 25, …
        joins.plot(across, np.array(away) / 10 - 0.5, color=TREE, linewidth=1.0)
    joins.set(xlim=(1.05 * links[:, 2].max() or 1.0, 0), ylim=(len(languages) - 0.5, -0.5), xlabel="degrees")
    joins.spines[["top", "left", "right"]].set_visible(False)
    joins.set_yticks([])
    joins.xaxis.set_major_locator(MaxNLocator(3))
    joins.tick_params(labelsize=7)

    apart = ~np.eye(len(values), dtype=bool)
    lowest, highest = values[apart].min(), values[apart].max()
    shown = np.ma.masked_where(~apart, values)
    image = cells.imshow(shown, cmap=ANGLES, vmin=lowest, vmax=max(highest, lowest + 0.1), aspect="auto")
    cells.set_xticks(range(len(languages)), languages, rotation=90)
    cells.set_yticks(range(len(languages)), languages)
    cells.tick_params(length=0, labelsize=8)
    cells.spines[:].set_visible(False)
    if len(languages) <= _MOST_NUMBERS:
        for (row, column), value in np.ndenumerate(values):
            own = row == column
            angle = float(halves[languages[row]]) if own else value
            cells.text(
                column,
                row,
                f"{angle:.0f}" if angle >= 9.95 else f"{angle:.1f}",
                ha="center",
                va="center",
                fontsize=7,
                style="italic" if own else "normal",
                color=ASIDE if own else ink_on(image.to_rgba(value)),
            )
    bar = figure.colorbar(image, ax=cells, fraction=0.05, pad=0.02, aspect=30)
    bar.set_label("angle in degrees")
    cells.set_title("on the diagonal: two halves of a language's text", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    return figure


def angles_by_block(angles: pd.DataFrame, title: str) -> Figure:
    """Draw the mean angle between two languages in every block, and the span from the smallest to the largest.

    ``angles`` has the columns statistic, block, smallest, mean, largest (degrees); a statistic may lack blocks.
    """
    figure = new_figure(6.4, 3.4, title)
    axes = figure.add_subplot()
    for colour, (statistic, own) in zip(
        (BLUE, VERMILION, GREEN), angles.groupby("statistic", sort=False), strict=False
    ):
        axes.plot(own["block"], own["mean"], color=colour, marker=".", label=statistic)
        axes.fill_between(own["block"], own["smallest"], own["largest"], color=colour, alpha=0.15, linewidth=0)
    axes.set(xlabel="block", ylabel="angle between two languages, degrees", ylim=(0, None))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    return figure
