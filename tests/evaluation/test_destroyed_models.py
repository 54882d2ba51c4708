"""A model that compression destroyed has an infinite perplexity, which is shown as such and stops nothing."""

import math

import numpy as np
import pytest

from mbs_ray.evaluation.comparison import Difference
from mbs_ray.evaluation.intervals import Interval, SegmentSums, percentile_interval
from mbs_ray.evaluation.metric_names import MetricNames
from mbs_ray.evaluation.perplexity import LanguageScore, evaluation_metrics, exponential, geometric_mean
from mbs_ray.report.figures.difference_forest import difference_forest
from mbs_ray.report.figures.increase_heatmap import increase_heatmap
from mbs_ray.report.increase_table import increase_table, to_markdown
from mbs_ray.report.page_tables import _heat


def score(nats: float, segments: int = 4) -> LanguageScore:
    tokens = np.full(segments, 10)
    sums = SegmentSums(np.arange(segments, dtype=np.int32), np.full(segments, 10 * nats), tokens)
    return LanguageScore(10 * segments, 10 * segments, 1, 10 * segments * nats, sums)


@pytest.mark.parametrize("nats", [709.0, 709.8, 800.0, 1e6])
def test_perplexity_above_709_nats_is_infinite_and_bits_per_byte_are_what_they_are(nats: float) -> None:
    assert exponential(nats) == (math.exp(nats) if nats < 709.7 else math.inf)
    assert score(nats).perplexity == exponential(nats)
    assert score(nats).bits_per_byte == pytest.approx(nats / math.log(2))


def test_all_metrics_of_a_destroyed_model_are_there() -> None:
    metrics = evaluation_metrics(
        MetricNames(), {"en": score(3.0), "sw": score(800.0)}, {"en": score(2.0), "sw": score(2.0)}
    )
    assert metrics["ppl/sw"] == metrics["ppl_increase/sw"] == math.inf
    assert metrics["ppl_increase/worst"] == metrics["ppl_increase/geomean"] == math.inf
    assert metrics["ppl_increase/en"] == pytest.approx(math.e)
    assert metrics["ppl_increase_ci95_low/sw"] == math.inf
    assert metrics["ppl_increase_ci95_low/en"] == pytest.approx(math.e)


def test_of_two_destroyed_models_the_ratio_is_that_of_their_nll() -> None:
    metrics = evaluation_metrics(MetricNames(), {"en": score(801.0)}, {"en": score(800.0)})
    assert metrics["ppl_increase/en"] == pytest.approx(math.e)
    assert evaluation_metrics(MetricNames(), {"en": score(2.0)}, {"en": score(900.0)})["ppl_increase/geomean"] == 0.0
    assert geometric_mean({"en": 4.0, "sw": 9.0}) == pytest.approx(6.0)


def test_what_is_not_a_number_is_the_worst_and_has_no_interval() -> None:
    increases = evaluation_metrics(
        MetricNames(), {"en": score(3.0), "sw": score(math.nan)}, {"en": score(2), "sw": score(2)}
    )
    assert math.isnan(increases["ppl_increase/worst"]) and math.isnan(increases["ppl_increase/geomean"])
    assert "ppl_increase_ci95_low/sw" not in increases
    assert percentile_interval(np.array([1.0, math.inf])) is None


def test_tables_and_figures_show_it() -> None:
    values = {"en": 1.5, "sw": math.inf, "geomean": math.inf, "worst": math.inf}
    table = increase_table({"wanda-50-equal": values})
    assert "| sw | inf |" in to_markdown(table)
    figure = increase_heatmap(table, "increase")
    assert "∞" in {text.get_text() for text in figure.axes[0].texts}
    figure.canvas.draw()
    assert (_heat(math.inf, 1.0, 2.0), _heat(math.nan, 1.0, 2.0)) == (1.0, 0.0)
    shown = {"en": Difference(0.1, Interval(0.0, 0.2)), "sw": Difference(900.0, Interval(899.0, 901.0))}
    forest = difference_forest(shown, "B against A")
    forest.canvas.draw()
    assert shown["sw"].ratio == math.inf and "∞" in {text.get_text() for text in forest.axes[0].texts}
