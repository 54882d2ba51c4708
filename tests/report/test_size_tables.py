"""Pruning and rounding at equal size, on the report page."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mbs_ray.report.figures.size_scatter import size_scatter
from mbs_ray.report.page import write_report_page
from mbs_ray.report.run_results import RunResults, read_sweep
from mbs_ray.report.size_tables import sizes
from mbs_ray.run.directory import RunDirectory
from tests.report.test_page import Page, write_run
from tests.run.test_card import FACTS

METHODS: dict[str, dict[str, Any]] = {
    "wanda-50-equal": {"name": "wanda", "sparsity": 0.5},
    "gptq-3bit-equal": {"name": "gptq", "bits": 3, "group_size": None, "symmetric": True},
}


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    for label, method in METHODS.items():
        folder = write_run(tmp_path / "tiny-sweep", label)
        linear = {"name": "dense", "rows": 64, "columns": 64, "sparsity": 0.75 if "sparsity" in method else 0.0}
        (folder / "blocks" / "block-00000.json").write_text(json.dumps({"block": 0, "linears": [linear]}))
        RunDirectory(folder).keep_card(replace(FACTS, method=method))
    write_run(tmp_path / "tiny-sweep", "wanda-50-monolingual-en")  # of which nothing is known
    return tmp_path / "tiny-sweep"


def test_runs_stand_in_the_order_of_their_size_with_what_they_lost(sweep: Path) -> None:
    page = Page(write_report_page(sweep))
    (table,) = [rows for rows in page.tables if rows[0][1]["text"] == "as stored"]
    shown = [[cell["text"].splitlines()[0] for cell in row[:5]] for row in table[1:]]
    assert shown == [
        ["gptq-3bit-equal", "3.25", "–", "3.25", "1.235"],
        ["wanda-50-equal", "16.00", "5.00", "5.00", "1.235"],
    ]
    assert "At equal size" in page.text and page.source.count('alt="Increase over bits per weight') == 1


def test_the_figure_shows_the_smaller_size_of_every_run_whose_increase_is_finite(sweep: Path) -> None:
    runs = read_sweep(sweep).runs
    figure = size_scatter(runs)
    assert figure is not None
    points = [(line.get_xdata()[0], line.get_ydata()[0]) for line in figure.axes[0].lines]
    assert sorted(points) == [(3.25, 1.2345678901234567), (5.0, 1.2345678901234567)]
    destroyed = [replace(run, metrics={"ppl_increase/geomean": math.inf}) for run in runs]
    assert size_scatter(destroyed) is None


def test_a_run_that_is_not_finished_and_a_sweep_of_unknown_sizes_are_left_out(sweep: Path, tmp_path: Path) -> None:
    (sweep / "runs" / "wanda-50-equal" / "result.json").unlink()
    ((_, own),) = sizes(read_sweep(sweep).runs)
    assert [run.facts.label for run, _ in own] == ["gptq-3bit-equal"]
    write_run(tmp_path / "other", "wanda-50-equal")
    unknown: tuple[RunResults, ...] = read_sweep(tmp_path / "other").runs
    assert sizes(unknown) == [] and "At equal size" not in Page(write_report_page(tmp_path / "other")).text
