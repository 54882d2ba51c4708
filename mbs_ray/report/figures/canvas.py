"""Figures without a display, and how they are saved."""

import os
import textwrap
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

CHARACTER = 0.085  # inches


def save_figure(figure: Figure, path: Path) -> Path:
    """Write the figure as PNG, whole or not at all; equal figures give equal bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        figure.savefig(unfinished, format="png", dpi=150, metadata={"Software": None})
        return unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def new_figure(width: float, height: float, title: str) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(textwrap.fill(title, int(width / CHARACTER / 1.2)), fontsize=11)
    return figure
