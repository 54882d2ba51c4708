"""The work of a sweep as its plan lists it."""

from pathlib import Path
from typing import Any

import pytest
import torch

from mbs_ray.methods import Statistic
from mbs_ray.plan.expert_work import loading_seconds
from mbs_ray.plan.planned_work import MetaDecoders, PlannedRun, planned_runs
from mbs_ray.plan.rates import assumed_rates
from mbs_ray.plan.stage_time import forward_seconds, stage_seconds
from mbs_ray.run.spec import RunSpec
from tests.support.mixtures import write_translated


def planned(model: Path, **changes: Any) -> dict[str, PlannedRun]:
    fields = {"model": str(model), "corpus": "corpus", "languages": ["en", "hi", "sw"], "sampling": "equal"}
    spec = RunSpec.model_validate({**fields, "method": "wanda", "segments": 30, "sequence_length": 32, **changes})
    works = planned_runs([spec], ["the-run"], MetaDecoders(cuda=False))
    return {work.label: work for work in works if isinstance(work, PlannedRun)}


def test_the_trials_of_a_budget_are_a_run_of_their_own(bloom: Path) -> None:
    works = planned(bloom, budget={"rule": "increase", "segments_per_language": 5})
    assert list(works) == ["trials of the-run", "the-run"]
    trials = works["trials of the-run"]
    assert trials.calibration.segments == 3 * 5 and trials.keep == "metrics"
    assert trials.solvings == trials.trials == 3 and trials.languages == 3
    # They measure by full moments whatever the method needs.
    assert trials.statistic is Statistic.FULL and works["the-run"].statistic is Statistic.DIAGONAL
    assert works["the-run"].calibration.segments == 30


@pytest.mark.parametrize(("rule", "trials"), [("increase", 2), ("ramp", 0)])
def test_bits_between_two_widths_are_planned_with_the_larger(bloom: Path, rule: str, trials: int) -> None:
    works = planned(bloom, method={"name": "gptq", "bits": 3}, budget={"rule": rule, "bits": 3.5})
    assert getattr(works["the-run"].method, "bits", None) == 4
    assert len(works) == (2 if trials else 1)
    assert all(work.solvings == trials for label, work in works.items() if label != "the-run")


def test_dense_statistics_are_tried_on_their_own_text(bloom: Path) -> None:
    statistics = {"mode": "dense", "segments_per_language": 7}
    works = planned(bloom, statistics=statistics, budget="increase")
    assert works["trials of the-run"].calibration.segments == 3 * 7


def test_trials_are_measured_by_language_and_write_nothing(bloom: Path) -> None:
    rates = assumed_rates("cpu", False, 1, torch.float32)
    works = planned(bloom, budget="increase")
    parts = {name: stage_seconds(work, range(2), False, rates, "host", False).parts for name, work in works.items()}
    trials, run = parts["trials of the-run"], parts["the-run"]
    # ΔW S: a product of rows × columns² for each of three trials and languages.
    squares = sum(
        rows * columns**2 for index in range(2) for rows, columns in works["the-run"].decoder.linears(index).values()
    )
    assert trials["try"] == pytest.approx(3 * 3 * 2 * squares / rates.product)
    assert "write" not in trials and "try" not in run and run["write"] > 0
    adaptive = {"name": "adaptive", "objective": "worst", "trials": 5}
    (searched,) = planned(bloom, sampling=adaptive, statistics="dense").values()
    searched_parts = stage_seconds(searched, range(2), False, rates, "host", False).parts
    assert searched_parts["try"] == pytest.approx(5 * 3 * 2 * squares / rates.product) and searched_parts["write"] > 0


def test_further_segments_are_planned_with_the_most_there_can_be_and_a_forward_to_find_them(tmp_path: Path) -> None:
    model = write_translated(tmp_path / "qwen3-moe", "qwen3-moe")
    rates = assumed_rates("cpu", False, 1, torch.float32)
    works = [planned(model, expert_segments=count)["the-run"] for count in (0, 6)]
    assert [work.calibration.segments for work in works] == [30, 36]
    plain, further = works
    assert plain.routed is None and further.routed == plain.calibration
    parts = [stage_seconds(work, range(3), False, rates, "host", False).parts for work in works]
    forward = sum(forward_seconds(plain.decoder, index, plain.calibration, rates) for index in range(3))
    loading = sum(loading_seconds(plain.decoder, index, rates) for index in range(3))
    assert "route" not in parts[0] and parts[1]["route"] == pytest.approx(forward + loading)
    assert parts[1]["read"] == pytest.approx(2 * parts[0]["read"])
    assert further.of_replica(3).routed == plain.calibration.of_replica(3)
    # Where no text is seen none is added.
    rounded = planned(model, expert_segments=6, method={"name": "rtn", "bits": 4})["the-run"]
    assert rounded.routed is None and rounded.calibration.segments == 30
