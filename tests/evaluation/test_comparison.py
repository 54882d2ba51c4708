"""B against A: numbers of a plain computation, noise called noise, other tokens refused by name."""

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mbs_ray.errors import InputError
from mbs_ray.evaluation.comparison import Difference, compare_scores
from mbs_ray.evaluation.intervals import Interval, resamples
from mbs_ray.evaluation.token_scores import SCHEMA
from mbs_ray.report.figures.difference_forest import difference_forest

LENGTH = 20
COUNTS = {"sw": 3, "en": 5}


def rows(loss: dict[str, float], noise: float = 0.0, counts: dict[str, int] = COUNTS) -> dict[str, list]:
    """Columns of token scores: one nll for all runs, to which a run adds a loss and noise that cancels in pairs."""
    columns: dict[str, list] = {name: [] for name in SCHEMA.names}
    segment = 0
    for language, count in counts.items():
        for own in range(count):
            random = np.random.default_rng([len(language), own])
            base = random.gamma(2.0, 1.5, LENGTH) + loss[language] + noise * (-1) ** own
            columns["nll"] += base.tolist()
            columns["language"] += [language] * LENGTH
            columns["document"] += [f"{language}.txt#{own}"] * LENGTH
            columns["bytes"] += [3] * LENGTH
            columns["segment"] += [segment] * LENGTH
            segment += 1
    return columns


def write(path: Path, columns: dict[str, list]) -> Path:
    pq.write_table(pa.table(columns).cast(SCHEMA), path)
    return path


def test_differences_ratios_and_intervals_are_those_of_a_plain_loop(tmp_path: Path) -> None:
    ones, others = rows({"sw": 0.0, "en": 0.0}), rows({"sw": 0.5, "en": 0.25}, noise=0.1)
    found = compare_scores("held-out", write(tmp_path / "a", ones), write(tmp_path / "b", others))
    assert list(found) == ["en", "sw", "geomean"]
    bootstrapped = {}
    for language, count in COUNTS.items():
        per_segment = []
        for own in range(count):
            place = [i for i, name in enumerate(ones["document"]) if name == f"{language}.txt#{own}"]
            per_segment.append(math.fsum(np.float32(others["nll"][i]) - np.float32(ones["nll"][i]) for i in place))
        assert found[language].nll == pytest.approx(math.fsum(per_segment) / (count * LENGTH), rel=1e-6)
        drawn = [row for part in resamples(count, language) for row in part.tolist()]
        bootstrapped[language] = [sum(per_segment[i] for i in row) / (count * LENGTH) for row in drawn]
    bootstrapped["geomean"] = [(a + b) / 2 for a, b in zip(bootstrapped["sw"], bootstrapped["en"], strict=True)]
    assert found["geomean"].nll == pytest.approx((found["en"].nll + found["sw"].nll) / 2)
    for row, estimates in bootstrapped.items():
        assert found[row].interval == pytest.approx(np.quantile(estimates, [0.025, 0.975]), rel=1e-5)
        assert found[row].ratio == pytest.approx(math.exp(found[row].nll))
        assert found[row].ratio_interval == pytest.approx([math.exp(end) for end in found[row].interval])
    assert found["geomean"].ratio == pytest.approx(math.sqrt(found["en"].ratio * found["sw"].ratio))


def test_what_may_be_noise_is_called_so_and_swapping_sides_swaps_the_verdict(tmp_path: Path) -> None:
    a = write(tmp_path / "a", rows({"sw": 0.0, "en": 0.0}))
    b = write(tmp_path / "b", rows({"sw": 0.01, "en": 1.0}, noise=0.2))
    verdicts = {row: one.verdict for row, one in compare_scores("x", a, b).items()}
    assert verdicts == {"en": "B is worse", "sw": "within noise", "geomean": "B is worse"}
    verdicts = {row: one.verdict for row, one in compare_scores("x", b, a).items()}
    assert verdicts == {"en": "B is better", "sw": "within noise", "geomean": "B is better"}
    itself = compare_scores("x", a, a)
    assert all((one.nll, one.interval, one.verdict) == (0.0, (0.0, 0.0), "within noise") for one in itself.values())


def test_a_language_of_one_segment_is_unknown_and_so_is_the_mean(tmp_path: Path) -> None:
    counts = {"sw": 1, "en": 5}
    a = write(tmp_path / "a", rows({"sw": 0.0, "en": 0.0}, counts=counts))
    b = write(tmp_path / "b", rows({"sw": 3.0, "en": 1.0}, counts=counts))
    verdicts = {row: one.verdict for row, one in compare_scores("x", a, b).items()}
    assert verdicts == {"en": "B is worse", "sw": "one segment: unknown", "geomean": "one segment: unknown"}


def _drop_language(columns: dict[str, list]) -> dict[str, list]:
    keep = [i for i, language in enumerate(columns["language"]) if language != "sw"]
    return {name: [values[i] for i in keep] for name, values in columns.items()}


def _drop_token(columns: dict[str, list]) -> dict[str, list]:
    return {name: values[:-1] for name, values in columns.items()}


def _change(column: str, value: object) -> object:
    def change(columns: dict[str, list]) -> dict[str, list]:
        return columns | {column: [*columns[column][:70], value, *columns[column][71:]]}

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_drop_language, "the languages are en, sw in A, en in B"),
        (_drop_token, "language 'en' has 100 tokens in A, 99 in B"),
        (_change("document", "other"), r"language 'en', scored token 11: document en.txt#0 in A, other in B"),
        (_change("bytes", 4), "language 'en', scored token 11: bytes 3 in A, 4 in B"),
        (_change("segment", 9), "language 'en', scored token 11: segment 3 in A, 9 in B"),
    ],
)
def test_other_tokens_are_refused_naming_the_set_and_what_differs(tmp_path: Path, change, message: str) -> None:
    columns = rows({"sw": 0.0, "en": 0.0})
    a, b = write(tmp_path / "a", columns), write(tmp_path / "b", change(columns))
    with pytest.raises(InputError, match=f"evaluation set held-out: .* same tokens.*: {message}"):
        compare_scores("held-out", a, b)


def test_the_figure_shows_every_ratio_with_its_interval() -> None:
    shown = {
        "en": Difference(0.2, None),
        "sw": Difference(-0.3, Interval(-0.4, -0.1)),
        "geomean": Difference(0.01, Interval(-0.1, 0.1)),
    }
    figure = difference_forest(shown, "title " * 20)
    axes = figure.axes[0]
    points = [line.get_xdata()[0] for line in axes.lines if line.get_marker() != "None"]
    assert points == pytest.approx([math.exp(one.nll) for one in shown.values()])
    assert [label.get_text() for label in axes.get_yticklabels()] == list(shown)
    figure.canvas.draw()
    width, height = figure.bbox.size
    low, high = axes.get_xlim()
    inside = [tick.label1 for tick in axes.xaxis.get_major_ticks() if low <= tick.get_loc() <= high]
    assert len(inside) >= 3
    for text in [*inside, *axes.get_yticklabels(), *figure.texts, axes.xaxis.label]:
        box = text.get_window_extent()
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height
