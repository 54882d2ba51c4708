"""Tasks on the report page, from hand-made answers: accuracies, McNemar's test, bits per byte, what compares."""

import json
import math
from dataclasses import asdict
from pathlib import Path

import pytest
from scipy.stats import binomtest

from mbs_ray.evaluation.task_items import TaskItem, write_items
from mbs_ray.evaluation.zero_shot import TaskScore
from mbs_ray.report.page import write_report_page
from mbs_ray.report.run_results import read_sweep
from mbs_ray.report.task_tables import task_tables
from mbs_ray.run.directory import RunDirectory
from tests.report.test_page import Page, write_run

DENSE = "a" * 64
RUNS = ("wanda-50-monolingual-en", "wanda-50-equal", "gptq-3bit-equal")
#: Of 20 questions the dense model answers the first 15 of each language; a run these, by language.
RIGHT = {
    "wanda-50-monolingual-en": {"en": range(15), "ta": range(3, 5)},
    "wanda-50-equal": {"en": range(2, 15), "ta": range(1, 16)},
    "gptq-3bit-equal": {"en": range(20), "ta": range(8)},
}


def items(right: dict[str, range], nats: float) -> list[TaskItem]:
    return [
        TaskItem("river", code, f"river_{code}", n, f"q{n}", float(n in own), 0, (-nats - n / 8, -9.0), (4, 8))
        for code, own in right.items()
        for n in range(20)
    ]


def write_tasks(
    evaluated: Path, name: str, answers: list[TaskItem], model: str, fingerprint: str = DENSE, **changes: object
) -> None:
    (evaluated / name).mkdir(parents=True)
    write_items(evaluated / name / "items.parquet", answers)
    content = {
        "model": model,
        "fingerprint": fingerprint,
        "tasks": "river_en,river_ta",
        "shots": 0,
        "limit": None,
        "compute_dtype": "float32",
        "version": {"mbs_ray": "0.1.0", "lm_eval": "0.4.13"},
        "questions": "f" * 16,
        "checkpoint_digest": None,
        "scores": [asdict(TaskScore("river", "en", 0.5, None, 20))],
    }
    (evaluated / name / "tasks.json").write_text(json.dumps({**content, **changes}))


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Three runs, all scored: of two the checkpoint is known by its weights, of one by where it lay."""
    sweep, evaluated = tmp_path / "tiny-sweep", tmp_path / "evaluated"
    for number, label in enumerate(RUNS):
        checkpoint = write_run(sweep, label) / "checkpoint"
        digest = None
        if number:
            files = {"README.md": "0" * 64, "config.json": "1" * 64, "a.safetensors": str(number) * 64}
            named = {name: {"bytes": 1, "sha256": one} for name, one in files.items()}
            (checkpoint / "manifest.json").write_text(json.dumps({"files": named}))
            digest = RunDirectory(sweep / "runs" / label).checkpoint_digest()
        model = f"/other/machine/tiny-sweep/runs/{label}/checkpoint"
        write_tasks(evaluated, label, items(RIGHT[label], 2.5), model, label, checkpoint_digest=digest)
    write_tasks(evaluated, "dense", items({"en": range(15), "ta": range(15)}, 2.0), "/models/tiny")
    return sweep


def test_every_run_stands_beside_the_dense_model_with_mcnemars_test(sweep: Path) -> None:
    page = Page(write_report_page(sweep))
    assert "tiny: river" in page.text and "40 questions, 0 shots, forward in float32" in page.text
    accuracy = page.grids()[2]
    assert {accuracy[code, "the dense model"]["value"] for code in ("en", "ta", "all")} == {75.0}
    for label, right in RIGHT.items():
        counts = {code: (len(set(range(15)) - set(own)), len(set(own) - set(range(15)))) for code, own in right.items()}
        p = {code: binomtest(lost, lost + won).pvalue if lost + won else 1.0 for code, (lost, won) in counts.items()}
        low = min(p.values())
        adjusted = {code: 2 * one if one == low else max(one, 2 * low) for code, one in p.items()}
        for code, (lost, won) in counts.items():
            cell = accuracy[code, label]
            assert cell["value"] == 100 * len(right[code]) / 20
            said = f"−{lost} +{won}, p {min(adjusted[code], 1):.2g}"
            assert said in cell["text"]
            assert ("worse" in cell["text"]) == (adjusted[code] <= 0.05 and lost > won)
            assert ("better" in cell["text"]) == (adjusted[code] <= 0.05 and won > lost)
    marks = {key: cell["text"] for key, cell in accuracy.items() if "worse" in cell["text"]}
    assert set(marks) == {("ta", RUNS[0]), ("ta", RUNS[2]), ("all", RUNS[0])}


def test_questions_of_one_number_are_one_in_the_row_of_all_languages(sweep: Path) -> None:
    accuracy = Page(write_report_page(sweep)).grids()[2]
    p = {}
    for label, right in RIGHT.items():
        change = [sum((n in own) - (n < 15) for own in right.values()) for n in range(20)]
        lost, won = sum(one < 0 for one in change), sum(one > 0 for one in change)
        p[label] = binomtest(lost, lost + won).pvalue if lost + won else 1.0
    # GPTQ wins five questions of English that it does not lose in Tamil, where it loses seven others.
    assert p["gptq-3bit-equal"] == binomtest(7, 12).pvalue
    cell = accuracy["all", "gptq-3bit-equal"]
    assert cell["value"] == 100 * 28 / 40 and "−7 +5" in cell["text"]
    # Over the three runs Holm takes the least p thrice, the next one twice.
    first, second, third = sorted(p, key=p.__getitem__)
    least = 3 * p[first]
    middle = max(least, 2 * p[second])
    adjusted = {first: least, second: middle, third: max(middle, p[third])}
    for label, value in adjusted.items():
        assert f"p {min(value, 1):.2g}" in accuracy["all", label]["text"]


def test_bits_per_byte_of_the_right_answers_and_their_change(sweep: Path) -> None:
    bits = Page(write_report_page(sweep)).grids()[3]
    for code in ("en", "ta", "all"):
        before, after = (sum(nats + n / 8 for n in range(20)) / math.log(2) / 80 for nats in (2.0, 2.5))
        assert bits[code, "the dense model"]["value"] == pytest.approx(before)
        change = f"{0.5 / math.log(2) / 4:+.3f}"
        for label in RUNS:
            assert bits[code, label]["value"] == pytest.approx(after)
            assert f"{change} … {change}" in bits[code, label]["text"]


def test_other_questions_settings_and_models_are_not_mixed(sweep: Path) -> None:
    evaluated = sweep.parent / "evaluated"
    answers = items(RIGHT["wanda-50-equal"], 2.0)
    own = {"model": "/x/tiny-sweep/runs/wanda-50-monolingual-en/checkpoint", "fingerprint": "b"}
    write_tasks(evaluated, "shots", answers, **own, shots=3)
    write_tasks(evaluated, "questions", answers, **own, questions="0" * 16)
    write_tasks(evaluated, "other-model", answers, "/models/other", "c")
    write_tasks(evaluated, "other-sweep", answers, "/x/other-sweep/runs/wanda-50-equal/checkpoint", "d")
    write_tasks(evaluated, "before", answers, **own)
    before = json.loads((evaluated / "before" / "tasks.json").read_text())
    del before["questions"]
    (evaluated / "before" / "tasks.json").write_text(json.dumps(before))
    found = task_tables(read_sweep(sweep).runs)
    assert [one.dense for one in found] == [True, False, False]
    titles = [[title for title, _ in one.tables[0][1].columns] for one in found]
    assert titles == [["the dense model", *sorted_as_shown(sweep)], [RUNS[0]], [RUNS[0]]]
    page = Page(write_report_page(sweep))
    assert "3 shots" in page.text and page.text.count("The dense model was not asked") == 2
    alone = page.grids()[4]
    assert alone["ta", RUNS[0]]["text"] == "75.0"


def sorted_as_shown(sweep: Path) -> list[str]:
    return [run.facts.label for run in read_sweep(sweep).runs]


def test_a_page_without_tasks_says_nothing_of_them(tmp_path: Path) -> None:
    write_run(tmp_path / "tiny-sweep", "wanda-50-equal")
    without = write_report_page(tmp_path / "tiny-sweep").read_text()
    assert "<h2>Tasks" not in without
    # Nor do those of other checkpoints, or of the dense model alone, change it.
    answers = items(RIGHT["wanda-50-equal"], 2.0)
    write_tasks(tmp_path / "evaluated", "other", answers, "/models/other", "c")
    write_tasks(tmp_path / "evaluated", "dense", answers, "/models/tiny")
    assert write_report_page(tmp_path / "tiny-sweep").read_text() == without


def test_the_model_card_is_no_part_of_what_tells_a_checkpoint(sweep: Path) -> None:
    shown = [one.tables for one in task_tables(read_sweep(sweep).runs)]
    manifest = sweep / "runs" / "gptq-3bit-equal" / "checkpoint" / "manifest.json"
    content = json.loads(manifest.read_text())
    content["files"]["README.md"]["sha256"] = "9" * 64
    manifest.write_text(json.dumps(content))
    assert [one.tables for one in task_tables(read_sweep(sweep).runs)] == shown
    # Other weights are another checkpoint, though it lies where the scored one lay.
    content["files"]["a.safetensors"]["sha256"] = "9" * 64
    manifest.write_text(json.dumps(content))
    (own,) = task_tables(read_sweep(sweep).runs)
    assert "gptq-3bit-equal" not in [title for title, _ in own.tables[0][1].columns]
