"""The heatmap of experts: shares against even ones, languages in their order, dots above the starved."""

import numpy as np
import pandas as pd
import pytest

from mbs_ray.errors import InputError
from mbs_ray.report.figures.experts_heatmap import experts_heatmap


def table(blocks: int, experts: int = 4) -> pd.DataFrame:
    """``en`` goes to expert 0 twice as often as evenly, ``sw`` never."""
    counts = {"en": [2, *[1] * (experts - 2), 0], "sw": [0, *[1] * (experts - 2), 2]}
    return pd.DataFrame(
        [
            {
                "block": block,
                "mixture": "m",
                "expert": at,
                "language": language,
                "tokens": n,
                "borrowed": float(at == 1),
            }
            for block in range(blocks)
            for language, own in counts.items()
            for at, n in enumerate(own)
        ]
    )


def test_shares_are_over_the_even_one_and_capped_in_both_directions() -> None:
    figure = experts_heatmap(table(1), "title")
    axes = figure.axes[0]
    figure.canvas.draw()
    drawn = np.asarray(axes.collections[0].get_array()).reshape(2, 4)
    assert drawn.tolist() == [[1.0, 0.0, 0.0, -2.0], [-2.0, 0.0, 0.0, 1.0]]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["en", "sw"]
    bottom, top = axes.get_ylim()
    assert bottom > top
    (dots,) = axes.lines
    assert dots.get_xdata().tolist() == [1.5]
    assert top < dots.get_ydata()[0] < 0


@pytest.mark.parametrize(("blocks", "shown"), [(1, 1), (12, 12), (48, 12)])
def test_of_many_blocks_twelve_are_shown_first_and_last_among_them(blocks: int, shown: int) -> None:
    figure = experts_heatmap(table(blocks), "title")
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert len(titles) == shown
    assert titles[0] == "block 0" and titles[-1] == f"block {blocks - 1}"


def test_experts_that_are_none_are_refused() -> None:
    with pytest.raises(InputError, match="the-run"):
        experts_heatmap(table(0), "the-run")
