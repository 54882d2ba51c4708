"""Calibration segments of each language, a bar for each."""

from collections.abc import Mapping

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from mbs_ray.errors import InputError
from mbs_ray.report.colours import BAR
from mbs_ray.report.figures.canvas import new_figure, wrapped


def allocation_bars(allocations: Mapping[str, Mapping[str, int]]) -> Figure:
    """Draw segments per language, one panel per sampling, on an axis that is linear to 1 and logarithmic above.

    A language that a sampling leaves out is shown with 0 segments.
    """
    languages = list(dict.fromkeys(language for counts in allocations.values() for language in counts))
    if not languages:
        raise InputError("the figure of the allocations needs at least one sampling with one language")
    most = max(max(counts.values(), default=0) for counts in allocations.values())
    width, height = 1.2 + 2.5 * len(allocations), 1.2 + 0.2 * len(languages)
    figure = new_figure(width, height, wrapped("calibration segments per language", width))
    panels = figure.subplots(1, len(allocations), sharey=True, sharex=True, squeeze=False)[0]
    for axes, (sampling, counts) in zip(panels, allocations.items(), strict=True):
        segments = [counts.get(language, 0) for language in languages]
        bars = axes.barh(languages, segments, color=BAR, height=0.75)
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
