"""Runs that differ by their seed alone, on the report page; and no others."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mbs_ray.report.page import write_report_page
from mbs_ray.report.run_results import read_sweep
from mbs_ray.report.seed_groups import seed_groups
from mbs_ray.run.directory import RunDirectory
from tests.report.test_page import INCREASES, Page, write_run


def seeded(sweep: Path, label: str, seed: int, add: float, **changes: Any) -> None:
    """A run with the fields of a sweep file, whose increases are ``add`` above those of the label."""
    folder = write_run(sweep, label)
    named = sweep / "runs" / f"{label}-seed{seed}"
    folder.rename(named)
    directory = RunDirectory(named)
    facts = directory.facts()
    assert facts is not None
    directory.claim({}, replace(facts, label=named.name, seed=seed))
    fields = {"model": "tiny", "method": label, "seed": seed, "budget": None, **changes}
    (named / "spec.json").write_text(json.dumps(fields))
    result = json.loads((named / "result.json").read_text())
    result["metrics"] = {
        name: value + add * name.startswith("ppl_increase/") for name, value in result["metrics"].items()
    }
    (named / "result.json").write_text(json.dumps(result))


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    for seed, add in ((0, 0.0), (1, 0.5), (2, 1.0)):
        seeded(tmp_path / "tiny-sweep", "wanda-50-equal", seed, add)
    seeded(tmp_path / "tiny-sweep", "gptq-3bit-equal", 0, 0.0)
    seeded(tmp_path / "tiny-sweep", "gptq-3bit-equal", 1, 0.0, segments=3)
    return tmp_path / "tiny-sweep"


def test_runs_that_differ_by_their_seed_alone_are_a_group(sweep: Path) -> None:
    (group,) = seed_groups(read_sweep(sweep).runs)
    assert (group.name, group.short_name, group.seeds) == ("wanda-50-equal", "equal", (0, 1, 2))
    en = INCREASES["wanda-50-equal"][0]
    assert group.means["ppl_increase/en"].mean == pytest.approx(en + 0.5)
    assert group.means["ppl_increase/en"].deviation == pytest.approx(0.5)
    assert group.means["ppl/en"].deviation == 0.0
    assert not any("ci95" in name or "scored" in name for name in group.means)
    # An earlier version had no such field; a run that is not finished is not counted.
    spec = sweep / "runs" / "wanda-50-equal-seed1" / "spec.json"
    spec.write_text(
        json.dumps({key: value for key, value in json.loads(spec.read_text()).items() if value is not None})
    )
    (sweep / "runs" / "wanda-50-equal-seed2" / "result.json").unlink()
    (group,) = seed_groups(read_sweep(sweep).runs)
    assert group.seeds == (0, 1)


def test_runs_on_other_text_of_an_evaluation_set_or_of_unknown_fields_are_no_group(sweep: Path) -> None:
    path = sweep / "runs" / "wanda-50-equal-seed0" / "result.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "evaluation": {"held-out": "e" * 64}}))
    (sweep / "runs" / "wanda-50-equal-seed1" / "spec.json").unlink()
    assert seed_groups(read_sweep(sweep).runs) == []


def test_the_page_has_means_and_spreads_of_groups_beside_the_single_runs(sweep: Path) -> None:
    page = Page(write_report_page(sweep))
    increase, means, perplexity = page.grids()
    title = "wanda-50-equal, seeds 0, 1, 2"
    assert {column for _, column in means} == {title}
    assert {row for row, _ in means} == {row for row, _ in increase}
    assert means["ta", title]["value"] == pytest.approx(INCREASES["wanda-50-equal"][2] + 0.5)
    assert means["ta", title]["text"] == "1.611± 0.500"
    assert {column for _, column in increase} | {"the dense model"} == {column for _, column in perplexity}
    (row,) = [row for row in page.tables[0] if row[0]["text"] == "wanda-50-equal"]
    assert row[4]["text"] == "3 seeds" and row[5]["text"] == "1.735± 0.500"


def test_a_page_without_groups_says_nothing_of_seeds(tmp_path: Path) -> None:
    seeded(tmp_path, "wanda-50-equal", 0, 0.0)
    page = Page(write_report_page(tmp_path))
    assert "over seeds" not in page.text and "standard deviation" not in page.text and len(page.grids()) == 2
