"""Colours of samplings, the same on the report page, in figures and in MLflow; and all others that figures use."""

# Colours that colour-blind readers tell apart (Okabe and Ito, Color Universal Design, 2008).
VERMILION = "#d55e00"
BLUE = "#0072b2"
GREEN = "#009e73"
PURPLE = "#cc79a7"
ORANGE = "#e69f00"
SKY_BLUE = "#56b4e9"

SAMPLING_COLOURS = {
    "monolingual": VERMILION,
    "equal": BLUE,
    "proportional": GREEN,
    "temperature": PURPLE,
    "counts": ORANGE,
    "adaptive": SKY_BLUE,
}
OTHER_SAMPLING = "#000000"

WORSE, BETTER, NOISE = VERMILION, BLUE, "#888888"
BAR = "#2b6a99"
GRID = "#dddddd"
#: Lines that only join, and numbers that only accompany: shares of white.
TREE, ASIDE = "0.35", "0.4"

# Colour maps of matplotlib: safe for colour-blind readers, monotone in grey.
LOSSES = "YlGnBu"
"""Light is no loss."""
ANGLES = "YlGnBu_r"
"""Dark is alike."""
SHARES = "PuOr_r"
"""Shares that differ from an even one, which is white, in either direction."""
RUNS = "tab20"
"""Runs side by side, told apart by a legend."""
