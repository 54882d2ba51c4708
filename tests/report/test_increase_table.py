"""Tables of a sweep: languages in table order, seeds averaged, summaries last."""

import pandas as pd
import pytest

from mbs_ray.report.increase_table import SeedSpread, increase_table, mean_over, to_markdown

INCREASES = {
    "wanda-50-equal-seed0": {"sw": 1.5, "ar": 1.25, "en": 1.0, "geomean": 1.2, "worst": 1.5},
    "wanda-50-equal-seed1": {"sw": 2.5, "ar": 1.75, "en": 1.0, "geomean": 1.6, "worst": 2.5},
    "rtn-4bit-equal-seed0": {"sw": 3.0, "ar": 1.0, "en": 1.0, "geomean": 1.4, "worst": 3.0},
}
COLUMNS = {
    "wanda-50-equal-seed0": ("wanda-50", "equal"),
    "wanda-50-equal-seed1": ("wanda-50", "equal"),
    "rtn-4bit-equal-seed0": ("rtn-4bit", "equal"),
}


def test_languages_come_in_table_order_and_summaries_last() -> None:
    table = increase_table(INCREASES)
    assert list(table.index) == ["en", "ar", "sw", "geomean", "worst"]
    assert list(table.columns) == list(INCREASES)
    assert table.loc["ar"].to_list() == [1.25, 1.75, 1.0]


def test_seeds_are_averaged_in_the_order_of_the_runs() -> None:
    table = mean_over(increase_table(INCREASES), COLUMNS)
    assert list(table.columns) == [("wanda-50", "equal"), ("rtn-4bit", "equal")]
    assert list(table.index) == ["en", "ar", "sw", "geomean", "worst"]
    assert table[("wanda-50", "equal")].to_list() == [1.0, 1.5, 2.0, pytest.approx(1.4), 2.0]


def test_the_spread_over_seeds_stands_behind_the_means_with_the_number_of_seeds() -> None:
    table = increase_table(INCREASES)
    spread = SeedSpread.over(table, COLUMNS)
    assert spread is not None
    assert spread.runs == {("wanda-50", "equal"): 2, ("rtn-4bit", "equal"): 1}
    assert spread.deviations.loc["sw", ("wanda-50", "equal")] == pytest.approx(0.5**0.5)
    shown = to_markdown(mean_over(table, COLUMNS), spread=spread).splitlines()
    assert shown[0] == "| language | wanda-50 equal (2 seeds) | rtn-4bit equal |"
    assert "| sw | 2.000 ± 0.707 | 3.000 |" in shown and "| en | 1.000 ± 0.000 | 1.000 |" in shown


def test_without_repeated_seeds_there_is_no_spread_and_an_infinite_value_has_none() -> None:
    assert SeedSpread.over(increase_table(INCREASES), {run: (run, "") for run in INCREASES}) is None
    table = pd.DataFrame({"a": {"en": 1.0, "sw": float("inf")}, "b": {"en": 1.0, "sw": 2.0}})
    spread = SeedSpread.over(table, dict.fromkeys("ab", ("m", "s")))
    assert spread is not None and spread.text("sw", ("m", "s")) == "" and spread.text("en", ("m", "s")) == "± 0.000"


def test_markdown_holds_every_number() -> None:
    table = pd.DataFrame({("gptq-3bit", "equal"): {"en": 1.0, "sw": 1.23456}})
    assert to_markdown(table) == ("| language | gptq-3bit equal |\n|---|---:|\n| en | 1.000 |\n| sw | 1.235 |\n")
