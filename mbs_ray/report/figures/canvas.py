"""Figures without a display, and how they are saved."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mbs_ray.files import appearing

CHARACTER = 0.085  # inches
_RED_GREEN_BLUE = (0.299, 0.587, 0.114)  # what each adds to how light a colour looks (ITU-R BT.601)


def new_figure(width: float, height: float, title: str = "") -> Figure:
    """Make a figure, sizes in inches, laid out so that nothing overlaps; the title as it is, see :func:`wrapped`."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def wrapped(title: str, width: float) -> str:
    """Wrap a title into lines that fit a figure of ``width`` inches."""
    return textwrap.fill(title, int(width / CHARACTER / 1.2))


def ink_on(colour: Sequence[float]) -> str:
    """Choose black or white for text on a colour, (red, green, blue) from 0 to 1."""
    return "black" if np.dot(colour[:3], _RED_GREEN_BLUE) > 0.5 else "white"


def save_figure(figure: Figure, path: Path) -> Path:
    """Write the figure as PNG, whole or not at all; equal figures give equal bytes."""
    with appearing(path) as unfinished, unfinished.open("wb") as file:
        write_png(figure, file, dpi=150)
    return path


def write_png(figure: Figure, file: IO[bytes], dpi: int) -> None:
    """Write the figure as PNG into an open file."""
    figure.savefig(file, format="png", dpi=dpi, metadata={"Software": None})
