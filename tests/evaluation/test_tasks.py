"""Tasks by name: their languages, their means, and what is said of those that cannot be scored."""

import io
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

from mbs_ray.cli import app
from mbs_ray.cli.terminal_tables import accuracy_table
from mbs_ray.errors import InputError
from mbs_ray.evaluation.zero_shot import (
    TaskScore,
    language_means,
    open_tasks,
    overall_mean,
    run_tasks,
    task_language,
    task_metrics,
    whole_of,
)

pytestmark = pytest.mark.usefixtures("own_tasks_only")


def test_a_language_counts_over_its_tasks_and_all_languages_alike() -> None:
    scores = [
        TaskScore("xnli", "sw", 0.25, None, 10),
        TaskScore("xcopa", "sw", 0.5, 0.1, 500),
        TaskScore("xnli", "en", 0.75, 0.1, 10),
        TaskScore("xcopa", "qu", 0.5, 0.1, 10),
    ]
    assert language_means(scores) == {"en": 0.75, "sw": 0.375, "qu": 0.5}
    assert overall_mean(scores) == pytest.approx((0.75 + 0.375 + 0.5) / 3)
    metrics = task_metrics(scores)
    assert metrics["acc/xnli/sw"] == 0.25 and "acc_stderr/xnli/sw" not in metrics
    assert metrics["acc_stderr/xcopa/sw"] == 0.1 and metrics["acc/mean/sw"] == 0.375
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(accuracy_table("accuracy", scores))
    rows = [
        [cell.strip() for cell in line.split("│")[1:-1]] for line in console.export_text().splitlines() if "│" in line
    ]
    assert rows == [
        ["en", "75.00 ± 10.00", "", "75.00"],
        ["sw", "25.00", "50.00 ± 10.00", "37.50"],
        ["qu", "", "50.00 ± 10.00", "50.00"],
        ["all", "", "", "54.17"],
    ]


@pytest.mark.parametrize(
    ("name", "task", "language"),
    [
        ("xnli_en", "xnli", "en"),
        ("xcopa_zh", "xcopa", "zh-Hans"),
        ("xcopa_qu", "xcopa", "qu"),
        ("xwinograd_jp", "xwinograd", "ja"),
        ("paws_ja", "paws", "ja"),
        ("belebele_eng_Latn", "belebele", "en"),
        ("belebele_zho_Hant", "belebele", "zh-Hant"),
        ("belebele_swh_Latn", "belebele", "sw"),
        ("belebele_deu_Latn", "belebele", "de"),
        ("belebele_kor_Hang", "belebele", "ko"),
        ("belebele_srp_Latn", "belebele", "sr-Latn"),
        ("afrixnli_swa", "afrixnli", "sw"),
        ("arc_easy", "arc_easy", "und"),
        ("mmlu_pro", "mmlu_pro", "und"),
        ("copa", "copa", "und"),
    ],
)
def test_the_language_of_a_task_is_read_from_its_name(name: str, task: str, language: str) -> None:
    assert task_language(name) == (task, language, "")


def test_parts_of_a_task_are_weighed_by_their_documents() -> None:
    parts = [TaskScore("global_mmlu", "yo", 0.2, 0.04, 100), TaskScore("global_mmlu", "yo", 0.5, 0.05, 300)]
    whole = whole_of(parts)
    assert (whole.task, whole.language, whole.documents) == ("global_mmlu", "yo", 400)
    assert whole.accuracy == pytest.approx((20 + 150) / 400)
    # The variance of a mean over two strata.
    assert whole.stderr == pytest.approx(((0.25 * 0.04) ** 2 + (0.75 * 0.05) ** 2) ** 0.5)
    assert whole_of([parts[0], TaskScore("global_mmlu", "yo", 0.5, None, 300)]).stderr is None
    assert whole_of(parts[:1]) is parts[0]


def test_tasks_that_cannot_be_scored_are_named(tmp_path: Path, task_folder: Path) -> None:
    def task(name: str, **fields: Any) -> None:
        content = yaml.safe_load((task_folder / "river_en.yaml").read_text()) | {"task": name} | fields
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(content))

    task("river_en")
    task("absent_en", dataset_path="nobody/has-this", dataset_kwargs={})
    task("written_en", output_type="generate_until", metric_list=[{"metric": "exact_match"}])
    task("river_eng")
    task("fixed_en", num_fewshot=0)
    for names, message in (
        ([], "names no task"),
        (["rivers_en"], r"task rivers_en: lm-evaluation-harness .* did you mean river_en"),
        (["absent_en"], r"task absent_en: cannot be loaded: .*nobody/has-this"),
        (["written_en"], "task written_en: has no accuracy .* generate_until with exact_match"),
        (["river_en", "river_eng"], "tasks river_en and river_eng both are river in en"),
    ):
        with pytest.raises(InputError, match=message) as refused:
            open_tasks(names, tmp_path)
        assert "\n" not in str(refused.value)
    with pytest.raises(InputError, match="is no folder"):
        open_tasks(["river_en"], tmp_path / "nowhere")
    with pytest.raises(InputError, match="task fixed_en: takes no examples"):
        run_tasks(None, open_tasks(["fixed_en"], tmp_path), shots=2)


def test_without_the_extra_the_command_says_what_to_install(
    bloom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    result = CliRunner().invoke(app, ["evaluate", str(bloom), "--tasks", "xnli", "--out", str(tmp_path)])
    assert result.exit_code == 2 and "pip install 'lm-eval>=0.4.13'" in result.stderr
    result = CliRunner().invoke(app, ["evaluate", str(bloom), "--out", str(tmp_path)])
    assert result.exit_code == 2 and "give --corpus with text, or --tasks" in result.stderr
