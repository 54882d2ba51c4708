"""Two languages of very different share, mixed: what each of them loses as its part grows smaller."""

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from benchmarks.studies.panels import legend_below, small_multiples
from benchmarks.studies.study_table import increases
from mbs_ray.languages.facts import table_order

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")


def _of_the_pair(sweep: Path) -> pd.DataFrame:
    """Rows of the two languages of each run: pair, large and small language, part of the small one."""
    frame = increases(sweep)
    counts = [options["counts"] for options in frame["options"]]
    # The table of languages goes from the largest share to the smallest; a run's counts are in any order.
    frame["large"], frame["small"] = zip(*map(table_order, counts), strict=True)
    frame["part"] = [one[small] / sum(one.values()) for one, small in zip(counts, frame["small"], strict=True)]
    frame = frame[(frame["language"] == frame["large"]) | (frame["language"] == frame["small"])]
    return frame.sort_values(["method", "large", "small", "part"], ascending=[True, True, True, False])


def table(sweep: Path) -> pd.DataFrame:
    """Increase of the large / the small language, by method and pair, and the small one's part as columns."""
    frame = _of_the_pair(sweep)
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for (method, large, small, part), own in frame.groupby(["method", "large", "small", "part"], sort=False):
        values = own.set_index("language")["increase"]
        rows.setdefault((method, f"{large}, {small}"), {})[f"{part:.0%}"] = f"{values[large]:.3f} / {values[small]:.3f}"
    return pd.DataFrame(rows).T


def figure(sweep: Path) -> Figure:
    frame = _of_the_pair(sweep)
    methods = list(dict.fromkeys(frame["method"]))
    canvas, axes = small_multiples(len(methods), "Two languages mixed", "perplexity ÷ dense", height=4.6)
    for method, panel in zip(methods, axes, strict=True):
        pairs = frame[frame["method"] == method].groupby(["large", "small"], sort=False)
        for ((large, small), own), colour in zip(pairs, _COLOURS, strict=True):
            for language, style in ((small, "o-"), (large, "s:")):
                line = own[own["language"] == language]
                label = f"{language} of {large} + {small}"
                panel.plot(line["part"], line["increase"], style, ms=4, color=colour, label=label)
        panel.set_xscale("log")
        parts = sorted(frame["part"].unique())
        panel.set_xticks(parts, [f"{part:.0%}" for part in parts])
        panel.minorticks_off()
        panel.set_xlabel("part of the smaller language")
        panel.set_title(method, fontsize=10)
    legend_below(canvas, columns=4)
    return canvas
