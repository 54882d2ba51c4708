"""Which expert the tokens of each language go to, languages × experts, a panel for each block."""

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from mbs_ray.errors import InputError
from mbs_ray.report.colours import SHARES
from mbs_ray.report.figures.canvas import new_figure, wrapped

#: Panels drawn at most: of more blocks, so many evenly spaced ones are shown.
_MOST_PANELS = 12
#: Times the even share at which a colour is strongest.
_STRONGEST = 4.0


def experts_heatmap(table: pd.DataFrame, title: str) -> Figure:
    """Draw each language's share of tokens by expert over the even share, on a logarithmic scale around 1.

    ``table``: columns block, mixture, expert, language, tokens, borrowed. Dots stand above experts that were starved.
    Raises InputError for a table without a row.
    """
    if table.empty:
        raise InputError(f"{title}: the heatmap needs at least one block with experts")
    panels = list(table.groupby(["block", "mixture"], sort=True))
    places = np.unique(np.linspace(0, len(panels) - 1, min(len(panels), _MOST_PANELS)).round().astype(int))
    languages = list(dict.fromkeys(table["language"]))
    experts = int(table["expert"].max()) + 1
    across = min(len(places), 4 if experts <= 16 else 2)
    down = math.ceil(len(places) / across)
    width = max(5.0, 2.0 + across * min(1.0 + 0.12 * experts, 6.0))
    height = 1.6 + down * (0.7 + 0.13 * len(languages))
    figure = new_figure(width, height, wrapped(title, width))
    meshes: list[Any] = []
    axes = figure.subplots(down, across, squeeze=False, sharey=True)
    for place, one in zip(places, axes.flat, strict=False):
        (block, _), own = panels[place]
        counts = own.pivot(index="language", columns="expert", values="tokens").reindex(languages)
        shares = counts.div(counts.sum(axis=1), axis=0) * len(counts.columns)
        logs = np.log2(np.clip(shares.to_numpy(dtype=float), 1 / _STRONGEST, _STRONGEST))
        limit = math.log2(_STRONGEST)
        meshes.append(one.pcolormesh(logs, cmap=SHARES, vmin=-limit, vmax=limit))
        starved = own[own["borrowed"] > 0]["expert"].unique()
        one.plot(starved + 0.5, np.full(len(starved), -0.35), "k.", markersize=2.5)
        one.set_title(f"block {block}", fontsize=8)
        one.set_ylim(len(languages), -0.7)
        one.set_yticks(np.arange(len(languages)) + 0.5, languages)
        one.tick_params(length=0, labelsize=6)
        one.set_xticks([0.5, len(counts.columns) - 0.5], ["0", str(len(counts.columns) - 1)])
        one.spines[:].set_visible(False)
    for one in axes.flat[len(places) :]:
        one.set_visible(False)
    bar = figure.colorbar(meshes[-1], ax=axes, fraction=0.03, pad=0.02, aspect=30)
    bar.set_ticks([-2, -1, 0, 1, 2], labels=["¼", "½", "1", "2", "4"])
    bar.set_label("share of its tokens ÷ even share", fontsize=8)
    return figure
