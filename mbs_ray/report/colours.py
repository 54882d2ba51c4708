"""Colours of samplings, the same on the report page, in figures and in MLflow."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


#: Colours that colour-blind readers tell apart (Okabe and Ito, Color Universal Design, 2008), by sampling.
SAMPLING_COLOURS = {
    "monolingual": "#d55e00",
    "equal": "#0072b2",
    "proportional": "#009e73",
    "temperature": "#cc79a7",
    "counts": "#e69f00",
    "adaptive": "#56b4e9",
}
OTHER_SAMPLING = "#000000"
