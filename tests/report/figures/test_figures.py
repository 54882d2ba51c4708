"""The figures show the data they are given, and leave no trace in matplotlib's global state."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from mbs_ray.errors import InputError
from mbs_ray.report.figures.allocation_bars import allocation_bars
from mbs_ray.report.figures.canvas import save_figure
from mbs_ray.report.figures.increase_heatmap import increase_heatmap
from mbs_ray.report.figures.layer_error_heatmap import layer_error_heatmap
from mbs_ray.report.increase_table import SeedSpread

METHODS = ["wanda 50 %", "sparsegpt 50 %"]
SAMPLINGS = ["monolingual en", "equal", "proportional"]


def example() -> pd.DataFrame:
    runs = pd.MultiIndex.from_product([METHODS, SAMPLINGS])
    values = 1.25 ** np.arange(18).reshape(3, 6)
    return pd.DataFrame(values, index=["en", "worst", "ta"], columns=runs)


def cells(figure: Figure) -> dict[tuple[str, float], tuple[str, tuple[float, ...]]]:
    """(row label, x) → (text, face colour) as drawn."""
    axes = figure.axes[0]
    names = [label.get_text() for label in axes.get_yticklabels()]
    rows = dict(zip(axes.get_yticks(), names, strict=True))
    faces = {
        (patch.get_x() + 0.5, patch.get_y() + 0.5): patch.get_facecolor()[:3]
        for patch in axes.patches
        if isinstance(patch, Rectangle)
    }
    return {
        (rows[y], x): (text.get_text(), faces[x, y])
        for text in axes.texts
        for x, y in [text.get_position()]
        if y in rows
    }


def test_every_value_is_written_into_the_cell_of_its_language_and_run() -> None:
    frame = example()
    figure = increase_heatmap(frame, "title")
    x = figure.axes[0].get_xticks()
    drawn = cells(figure)
    assert len(drawn) == frame.size
    for row in frame.index:
        for column, value in enumerate(frame.loc[row]):
            assert float(drawn[row, x[column]][0]) == pytest.approx(value, rel=0.005)


def test_the_spread_over_seeds_is_written_under_the_mean() -> None:
    frame = example()
    deviations = pd.DataFrame(0.0125, index=frame.index, columns=frame.columns)
    spread = SeedSpread(deviations, {**dict.fromkeys(frame.columns, 3), frame.columns[0]: 1})
    deviations[frame.columns[0]] = float("nan")
    figure, plain = increase_heatmap(frame, "title", spread), increase_heatmap(frame, "title")
    assert figure.get_figheight() > plain.get_figheight()
    axes, first = figure.axes[0], SAMPLINGS[0]
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert labels == [first, *(f"{name} (3 seeds)" for name in (SAMPLINGS * 2)[1:])]
    for (row, x), (text, colour) in cells(figure).items():
        value, same = cells(plain)[row, x]
        under = "" if x == axes.get_xticks()[0] else "\n± 0.013"
        assert (text, colour) == (f"{value}{under}", same)


def test_runs_are_labelled_with_their_sampling_under_the_name_of_their_method() -> None:
    axes = increase_heatmap(example(), "title").axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == SAMPLINGS * 2
    ticks = axes.get_xticks()
    headers = {t.get_text(): t.get_position()[0] for t in axes.texts if t.get_text() in METHODS}
    assert headers == {"wanda 50 %": ticks[1], "sparsegpt 50 %": ticks[4]}


def test_methods_and_summary_rows_are_set_apart() -> None:
    axes = increase_heatmap(example(), "title").axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["en", "ta", "worst"]
    assert np.diff(axes.get_yticks()) == pytest.approx([1.0, 1.3])
    assert np.diff(axes.get_xticks()) == pytest.approx([1.0, 1.0, 1.3, 1.0, 1.0])


def test_plain_run_names_make_one_group() -> None:
    frame = pd.DataFrame({"gptq-3-equal": [1.1], "wanda-50-equal": [1.2]}, index=["en"])
    axes = increase_heatmap(frame, "title").axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["gptq-3-equal", "wanda-50-equal"]
    assert np.diff(axes.get_xticks()) == pytest.approx([1.0])


def test_a_larger_loss_is_drawn_darker() -> None:
    frame = pd.DataFrame({"run": [1.0, 1.5, 3.0, 30.0, math.inf]}, index=["a", "b", "c", "d", "e"])
    drawn = cells(increase_heatmap(frame, "title"))
    grey = [np.dot(drawn[row, 0.0][1], (0.299, 0.587, 0.114)) for row in frame.index]
    assert grey[:4] == sorted(set(grey), reverse=True)
    assert grey[4] == grey[3]


def test_missing_and_infinite_values_are_shown_as_such() -> None:
    frame = pd.DataFrame({"run": [math.nan, math.inf, 123456.0]}, index=["en", "ta", "sw"])
    drawn = cells(increase_heatmap(frame, "title"))
    assert [drawn[row, 0.0][0] for row in frame.index] == ["–", "∞", "1e5"]
    assert drawn["en", 0.0][1] == to_rgb("white")


def test_no_loss_anywhere_is_drawn_in_the_lightest_colour() -> None:
    frame = pd.DataFrame({"run": [1.0, 1.001]}, index=["en", "ta"])
    figure = increase_heatmap(frame, "title")
    assert min(cells(figure)["ta", 0.0][1]) > 0.8


@pytest.mark.parametrize("runs", [{}, {"run": [0.0]}, {"run": [-1.0]}])
def test_a_heatmap_of_nothing_or_of_no_ratios_is_refused(runs: dict[str, list[float]]) -> None:
    with pytest.raises(InputError, match="the-sweep"):
        increase_heatmap(pd.DataFrame(runs), "the-sweep")


def test_bars_have_the_length_and_the_number_of_their_allocation() -> None:
    allocations = {"monolingual en": {"en": 256}, "proportional": {"en": 200, "ta": 55, "sw": 1}}
    panels = allocation_bars(allocations).axes
    assert len(panels) == 2
    for axes, (sampling, counts) in zip(panels, allocations.items(), strict=True):
        expected = [counts.get(language, 0) for language in ("en", "ta", "sw")]
        assert [label.get_text() for label in panels[0].get_yticklabels()] == ["en", "ta", "sw"]
        assert [bar.get_width() for bar in axes.patches if isinstance(bar, Rectangle)] == expected
        assert [text.get_text() for text in axes.texts] == [str(count) for count in expected]
        assert axes.get_title() == f"{sampling}\n256 segments"
        assert axes.get_xlim()[1] > max(expected)


def test_bars_of_no_allocation_are_refused() -> None:
    with pytest.raises(InputError, match="at least one"):
        allocation_bars({"equal": {}})


def test_layer_errors_are_drawn_darker_the_larger_and_white_where_there_is_none() -> None:
    errors = pd.DataFrame({0: [0.001, 0.01], 1: [0.1, 0.0], 2: [1.0, math.nan]}, index=["en", "sw"])
    figure = layer_error_heatmap(errors, "title")
    axes = figure.axes[0]
    figure.canvas.draw()
    drawn = axes.collections[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["en", "sw"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "1", "2"]
    assert axes.get_ylim() == (2, 0)
    grey = drawn.get_facecolors()[:, :3] @ (0.299, 0.587, 0.114)
    en, sw = grey.reshape(2, 3)
    assert en[0] > sw[0] > en[1] > en[2]
    assert drawn.get_array().mask.tolist() == [[False, False, False], [False, True, True]]


def test_layer_errors_of_many_blocks_have_ticks_that_can_be_read_and_no_error_at_all_can_be_drawn() -> None:
    many = layer_error_heatmap(pd.DataFrame(0.0, index=["en"], columns=range(70)), "title")
    many.canvas.draw()
    assert [label.get_text() for label in many.axes[0].get_xticklabels()] == [str(one) for one in range(0, 70, 3)]


@pytest.mark.parametrize("errors", [{}, {0: [-1.0]}])
def test_layer_errors_that_are_none_are_refused(errors: dict[int, list[float]]) -> None:
    with pytest.raises(InputError, match="the-run"):
        layer_error_heatmap(pd.DataFrame(errors), "the-run")


@pytest.mark.parametrize("runs", [1, 27])
def test_nothing_is_cut_off_at_the_border(runs: int) -> None:
    columns = pd.MultiIndex.from_tuples([(f"sparsegpt {i // 3}", SAMPLINGS[i % 3]) for i in range(runs)])
    frame = pd.DataFrame(np.full((20, runs), 2.0), index=[f"zh-{i}" for i in range(20)], columns=columns)
    figure = increase_heatmap(frame, "a title that needs several lines on a narrow figure " * 3)
    figure.canvas.draw()
    width, height = figure.bbox.size
    axes = figure.axes[0]
    for text in [*axes.texts, *axes.get_xticklabels(), *axes.get_yticklabels(), *figure.texts]:
        box = text.get_window_extent()
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height, text.get_text()


def test_a_saved_figure_is_a_png_that_depends_on_the_data_alone(tmp_path: Path) -> None:
    first = save_figure(increase_heatmap(example(), "title"), tmp_path / "deep" / "a.png")
    again = save_figure(increase_heatmap(example(), "title"), tmp_path / "deep" / "b.png")
    other = save_figure(increase_heatmap(example() * 1.1, "title"), tmp_path / "deep" / "c.png")
    assert first == tmp_path / "deep" / "a.png"
    assert first.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert first.read_bytes() == again.read_bytes() != other.read_bytes()
    assert sorted(path.name for path in first.parent.iterdir()) == ["a.png", "b.png", "c.png"]


def test_drawing_and_saving_never_load_pyplot(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib, pandas\n"
        "from mbs_ray.report.figures.allocation_bars import allocation_bars\n"
        "from mbs_ray.report.figures.canvas import save_figure\n"
        "from mbs_ray.report.figures.increase_heatmap import increase_heatmap\n"
        "frame = pandas.DataFrame({'run': [1.5]}, index=['en'])\n"
        "save_figure(increase_heatmap(frame, 'title'), pathlib.Path(sys.argv[1]))\n"
        "allocation_bars({'equal': {'en': 1}})\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "a.png")], check=True, timeout=60)
