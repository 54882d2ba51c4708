"""The figures of similarity show the angles they are given, in the order of the clusters."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from mbs_ray.evaluation.language_angles import cluster
from mbs_ray.report.figures.similarity_heatmap import angles_by_block, similarity_heatmap

PLACES = {"en": 0.0, "sw": 40.0, "fr": 3.0, "yo": 50.0}
ANGLES = pd.DataFrame({x: {y: abs(p - q) for y, q in PLACES.items()} for x, p in PLACES.items()})
HALVES = pd.Series({"en": 1.25, "sw": 12.0, "fr": 2.5, "yo": 3.75})


def test_angles_stand_beside_the_tree_in_the_order_of_its_leaves() -> None:
    figure = similarity_heatmap(ANGLES, HALVES, cluster(ANGLES), "title")
    figure.canvas.draw()
    joins, cells, _ = figure.axes
    names = [label.get_text() for label in cells.get_yticklabels()]
    assert [label.get_text() for label in cells.get_xticklabels()] == names
    assert {frozenset(names[:2]), frozenset(names[2:])} == {frozenset(("en", "fr")), frozenset(("sw", "yo"))}
    written = {text.get_position(): text.get_text() for text in cells.texts}
    assert len(written) == 16
    for row, language in enumerate(names):
        for column, other in enumerate(names):
            angle = HALVES[language] if row == column else ANGLES.loc[language, other]
            assert float(written[column, row]) == pytest.approx(angle, abs=0.5 if angle >= 9.95 else 0.051)
    # Two leaves at their height 0, joined where they are apart; the cells of both lie beside them.
    nearest = min(joins.lines, key=lambda line: max(line.get_xdata()))
    at = sorted(round(place) for place in nearest.get_ydata()[[0, -1]])
    assert {names[place] for place in at} == {"en", "fr"}
    assert max(nearest.get_xdata()) == pytest.approx(3.0)


def test_alike_is_dark_and_a_language_beside_itself_is_left_white() -> None:
    figure = similarity_heatmap(ANGLES, HALVES, cluster(ANGLES), "title")
    image = figure.axes[1].images[0]
    names = [label.get_text() for label in figure.axes[1].get_yticklabels()]
    assert image.get_array().mask.tolist() == np.eye(4, dtype=bool).tolist()
    grey = {
        other: np.dot(image.to_rgba(image.get_array()[names.index("en"), names.index(other)])[:3], (0.3, 0.6, 0.1))
        for other in ("fr", "sw", "yo")
    }
    assert grey["fr"] < grey["sw"] < grey["yo"]


def test_languages_that_cannot_be_told_apart_can_be_drawn() -> None:
    same = ANGLES * 0.0
    similarity_heatmap(same, HALVES, cluster(same), "title").canvas.draw()


@pytest.mark.parametrize("count", [2, 46])
def test_nothing_is_cut_off_at_the_border(count: int) -> None:
    places = np.random.default_rng(0).uniform(0, 90, count)
    names = [f"zh-{number}" for number in range(count)]
    angles = pd.DataFrame(np.abs(np.subtract.outer(places, places)), index=names, columns=names)
    figure = similarity_heatmap(angles, pd.Series(1.0, index=names), cluster(angles), "bloom-mini-5m, input of block 0")
    figure.canvas.draw()
    width, height = figure.bbox.size
    _, cells, bar = figure.axes
    labels = [*cells.get_xticklabels(), *cells.get_yticklabels(), cells.title, bar.yaxis.label]
    for text in [*cells.texts, *labels, *figure.texts]:
        box = text.get_window_extent()
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height, text.get_text()


def test_a_line_is_the_mean_of_a_statistic_over_the_blocks() -> None:
    rows = [
        (statistic, block, block, block + 2.0, block + 9.0) for statistic in ("diagonal", "full") for block in (0, 1)
    ]
    figure = angles_by_block(pd.DataFrame(rows, columns=["statistic", "block", "smallest", "mean", "largest"]), "title")
    lines = {line.get_label(): line.get_ydata().tolist() for line in figure.axes[0].lines}
    assert lines == {"diagonal": [2.0, 3.0], "full": [2.0, 3.0]}


def test_the_line_of_the_experts_begins_where_they_do_and_leaves_the_others_their_colours() -> None:
    columns = ["statistic", "block", "smallest", "mean", "largest"]
    rows = [(one, block, 1.0, 2.0, 3.0) for one in ("diagonal", "full") for block in (0, 1, 2)]
    dense, mixture = (
        angles_by_block(pd.DataFrame([*rows, *more], columns=columns), "title").axes[0].lines
        for more in ([], [("experts", 1, 4.0, 5.0, 6.0), ("experts", 2, 4.0, 5.0, 6.0)])
    )
    colours = {line.get_label(): line.get_color() for line in dense}
    assert [line.get_label() for line in mixture] == ["diagonal", "full", "experts"]
    assert {line.get_label(): line.get_color() for line in mixture[:2]} == colours
    assert mixture[2].get_color() not in colours.values()
    assert mixture[2].get_xdata().tolist() == [1, 2] and mixture[2].get_ydata().tolist() == [5.0, 5.0]


@pytest.mark.slow
def test_drawing_never_loads_pyplot() -> None:
    program = (
        "import sys, pandas\n"
        "from mbs_ray.evaluation.language_angles import cluster\n"
        "from mbs_ray.report.figures.similarity_heatmap import similarity_heatmap\n"
        "angles = pandas.DataFrame([[0.0, 1.0], [1.0, 0.0]], index=['a', 'b'], columns=['a', 'b'])\n"
        "similarity_heatmap(angles, pandas.Series({'a': 1.0, 'b': 1.0}), cluster(angles), 'title').canvas.draw()\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
