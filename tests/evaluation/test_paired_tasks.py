"""McNemar's test, Holm's adjustment and answers kept: against exact enumeration, definitions, files."""

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from mbs_ray.cli import app
from mbs_ray.errors import InputError
from mbs_ray.evaluation.paired_tasks import ALL, holm, holm_over_runs, mcnemar, paired_answers
from mbs_ray.evaluation.task_items import TaskItem, bits_per_byte, items_of, read_items, write_items


def item(number: int, score: float, task: str = "river", language: str = "en", right: int | None = 0) -> TaskItem:
    likelihoods = (-2.0 - score, -4.0)
    return TaskItem(task, language, f"{task}_{language}", number, f"q{number}", score, right, likelihoods, (4, 8))


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (1, 0), (3, 3), (0, 5), (2, 7), (9, 1)])
def test_mcnemar_is_the_share_of_all_outcomes_at_least_as_uneven(only_a: int, only_b: int) -> None:
    uneven = abs(only_a - only_b)
    every = [abs(2 * sum(coins) - only_a - only_b) for coins in itertools.product((0, 1), repeat=only_a + only_b)]
    assert mcnemar(only_a, only_b) == pytest.approx(sum(one >= uneven for one in every) / len(every))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_rejects_what_his_procedure_rejects(values: list[float]) -> None:
    adjusted = holm(values)
    for level in (0.01, 0.05, 0.2):
        rejected = set()
        for place, at in enumerate(sorted(range(len(values)), key=lambda one: values[one])):
            if values[at] * (len(values) - place) > level:
                break
            rejected.add(at)
        assert {at for at, one in enumerate(adjusted) if one <= level} == rejected


def test_rows_are_by_task_and_language_then_over_tasks_then_over_all() -> None:
    a = [item(n, float(n < 8), task, code) for task in ("river", "ford") for code in ("sw", "en") for n in range(10)]
    b = [
        replace(one, score=float(one.item >= 9), loglikelihoods=(-3.0, -1.0)) if one.language == "sw" else one
        for one in a
    ]
    rows = paired_answers(a, b)
    assert [(row.task, row.language) for row in rows] == [
        ("river", "en"), ("river", "sw"), ("ford", "en"), ("ford", "sw"), (ALL, "en"), (ALL, "sw"), (ALL, ALL),
    ]  # fmt: skip
    worse = rows[1]
    assert (worse.items, worse.score_a, worse.score_b, worse.only_a, worse.only_b) == (10, 0.8, 0.1, 8, 1)
    assert worse.p == pytest.approx(2 * (1 + 9) / 2**9) and worse.adjusted == pytest.approx(4 * worse.p)
    assert worse.verdict == "within noise" and rows[5].verdict == rows[6].verdict == "B is worse"
    # Right answers of 4 bytes: A's have 3 nats where it was right, else 2; B's 3.
    assert worse.bits == pytest.approx(2 / math.log(2) / 40) and worse.interval is not None
    assert worse.interval.low <= worse.bits <= worse.interval.high
    assert rows[0].bits == 0 and rows[0].p == 1 and rows[0].verdict == "within noise"
    swapped = paired_answers(b, a)
    assert swapped[6].verdict == "B is better" and swapped[1].bits == pytest.approx(-worse.bits)


def test_over_runs_the_last_row_alone_is_adjusted_by_their_number() -> None:
    a = [item(n, 1.0) for n in range(20)]
    runs = [paired_answers(a, [replace(one, score=float(one.item >= lost)) for one in a]) for lost in (7, 6, 0)]
    adjusted = holm_over_runs(runs)
    assert [rows[-1].adjusted for rows in adjusted] == pytest.approx([3 * 2 / 2**7, max(3 * 2 / 2**7, 2 * 2 / 2**6), 1])
    assert [rows[:-1] for rows in adjusted] == [rows[:-1] for rows in runs]
    assert [rows[-1].verdict for rows in runs] == ["B is worse", "B is worse", "within noise"]
    assert [rows[-1].verdict for rows in adjusted] == ["B is worse", "within noise", "within noise"]


def test_other_questions_are_refused_by_name() -> None:
    a = [item(n, True) for n in range(3)]
    for b, message in (
        (a[:2], r"task river_en: question 2 was asked of A alone; .* with the same --limit"),
        ([*a, item(3, True)], "question 3 was asked of B alone"),
        ([*a[:2], replace(a[2], question="other")], r"question 2 is another in A than in B; .* --shots"),
    ):
        with pytest.raises(InputError, match=message):
            paired_answers(a, b)


def answers(document: dict[str, list[str]]) -> list[str]:
    return document["answers"]


def test_fractions_are_compared_by_the_sign_of_their_difference() -> None:
    a, b = [item(n, 0.5, right=None) for n in range(8)], [item(n, 0.4, right=None) for n in range(8)]
    row = paired_answers(a, b)[0]
    assert (row.only_a, row.only_b, row.score_a, row.score_b) == (8, 0, 0.5, pytest.approx(0.4))
    assert row.p == pytest.approx(2 / 2**8) and row.verdict == "B is worse" and row.bits is None


def test_questions_of_one_number_count_once_over_all_languages() -> None:
    # Ten translations of five questions, of which B loses four and wins one in every language.
    a = [item(n, float(n > 0), language=code) for code in ("en", "fr", "es", "pt", "ar") for n in range(5)]
    b = [replace(one, score=1 - one.score) for one in a]
    last = paired_answers(a, b)[-1]
    assert (last.language, last.only_a, last.only_b) == (ALL, 20, 5) and last.p == mcnemar(4, 1)


def test_items_are_read_from_samples_of_the_harness_each_once() -> None:
    sample = {
        "doc_id": 4, "doc": {"answers": ["A", "B"]}, "doc_hash": "a" * 64, "prompt_hash": "b" * 64,
        "acc": 1.0, "target": 1,
        "arguments": [("Q", " noon"), ("Q", " बहुत"), ("", " noon"), ("", " बहुत")],
        "resps": [[(-2.5, False)], [(-1.5, True)], [(-9.0, False)], [(-9.0, False)]],
    }  # fmt: skip
    (found,) = items_of("river_hi", [sample, {**sample, "acc": 0.0}], answers, conditional_alone=False)
    assert found == TaskItem("river", "hi", "river_hi", 4, f"{'a' * 16}-{'b' * 16}", True, 1, (-2.5, -1.5), (5, 1 + 12))
    assert bits_per_byte([found]) == pytest.approx(1.5 / math.log(2) / 13)
    for target, right in (("B", 1), ("C", None), (np.int64(1), 1), (7, None), ([0, 1], None), (-100, None)):
        (one,) = items_of("river_hi", [{**sample, "target": target}], answers, conditional_alone=False)
        assert one.right == right and (bits_per_byte([one]) is None) == (right is None)
    # A share of the likelihood on several right answers is no right or wrong, and has not the one right answer.
    (shared,) = items_of("river_hi", [{**sample, "acc": 0.25}], answers, conditional_alone=False)
    assert shared.score == 0.25 and shared.right is None
    (lost,) = items_of("river_hi", [{**sample, "resps": [[(-2.5, False)], [(-math.inf, True)]] * 2}], answers)
    assert bits_per_byte([found, lost]) is None and paired_answers([lost], [lost])[0].bits is None


def test_items_come_back_from_their_file_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    items = [item(0, 1), item(1, 0.25, right=None), item(2, 1, "ford", "und")]
    write_items(tmp_path / "items.parquet", items)
    assert read_items(tmp_path / "items.parquet") == items
    (tmp_path / "items.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(InputError, match=r"items\.parquet"):
        read_items(tmp_path / "items.parquet")


def compare(*words: object) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, ["compare", *map(str, words)])


def test_the_command_compares_folders_of_tasks_and_says_what_is_missing(tmp_path: Path) -> None:
    for name, right in (("a", 18), ("b", 4)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tasks.json").write_text(json.dumps({"model": f"models/{name}"}))
        write_items(tmp_path / name / "items.parquet", [item(n, float(n < right)) for n in range(20)])
    result = compare(tmp_path / "a", tmp_path / "b", "--out", tmp_path / "new")
    assert result.exit_code == 0, result.output
    assert "A: models/a" in result.stdout and "B is worse" in result.stdout
    lines = (tmp_path / "new" / "comparison-of-tasks.csv").read_text().splitlines()
    assert lines[0].startswith("task,language,items,score_a,score_b,only_a,only_b,p,adjusted,bits,low,high")
    assert lines[1].startswith("river,en,20,0.9,0.2,14,0,")
    (tmp_path / "b" / "items.parquet").unlink()
    assert "an earlier version kept no answers" in compare(tmp_path / "a", tmp_path / "b").output.replace("\n", " ")
    assert "has no tasks.json" in compare(tmp_path / "a", tmp_path).output.replace("\n", " ")
