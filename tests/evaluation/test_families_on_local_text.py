"""Three families of lm-eval end to end, on questions of our own: the harness's files, prompts and all, but no hub."""

import json
from pathlib import Path
from typing import Any

import lm_eval.tasks
import pytest
import yaml
from ray.cluster_utils import Cluster
from typer.testing import CliRunner

from mbs_ray.cli import app
from mbs_ray.evaluation.task_items import read_items

FAMILIES = Path(lm_eval.tasks.__file__).parent
PREMISES = {
    "sw": ["Mto ulijaa maji", "Mvuvi alirudi nyumbani", "Mvua ilinyesha usiku", "Daraja lilivunjika"],
    "hi": ["नदी में पानी भर गया", "मछुआरा घर लौट आया", "रात को बारिश हुई", "पुल टूट गया"],
}
ANSWERS = {"sw": ["Watu walifurahi", "Maji yalikauka"], "hi": ["लोग खुश हुए", "पानी सूख गया"]}


def xcopa(language: str) -> list[dict[str, Any]]:
    one, other = ANSWERS[language]
    return [
        {
            "premise": f"{text}.",
            "choice1": one,
            "choice2": other,
            "question": ("cause", "effect")[n % 2],
            "label": n % 2,
        }
        for n, text in enumerate(PREMISES[language])
    ]


def xnli(language: str) -> list[dict[str, Any]]:
    told = ANSWERS[language]
    return [{"premise": text, "hypothesis": told[n % 2], "label": n % 3} for n, text in enumerate(PREMISES[language])]


def belebele(language: str) -> list[dict[str, Any]]:
    texts = PREMISES[language]
    answers = {f"mc_answer{n + 1}": text for n, text in enumerate(texts)}
    return [
        {"flores_passage": ". ".join(texts), "question": f"{text}?", "correct_answer_num": str(n + 1), **answers}
        for n, text in enumerate(texts)
    ]


#: The harness's file, the split it scores, our questions and their language.
TASKS = {
    "xcopa_sw": ("xcopa/default_sw.yaml", "test", xcopa, "sw"),
    "xnli_sw": ("xnli/xnli_sw.yaml", "validation", xnli, "sw"),
    "xnli_hi": ("xnli/xnli_hi.yaml", "validation", xnli, "hi"),
    "belebele_swh_Latn": ("belebele/belebele_swh_Latn.yaml", "test", belebele, "sw"),
    "belebele_hin_Deva": ("belebele/belebele_hin_Deva.yaml", "test", belebele, "hi"),
}


@pytest.mark.usefixtures("own_tasks_only")
def test_families_are_scored_by_language_on_local_text(ray_cluster: Cluster, bloom: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tasks"
    folder.mkdir()
    for name, (file, split, questions, language) in TASKS.items():
        lines = [json.dumps(one, ensure_ascii=False) for one in questions(language)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        content = {
            "include": str(FAMILIES / file), "task": name, "dataset_path": "json", "dataset_name": None,
            "dataset_kwargs": {"data_files": {split: str(folder / f"{name}.jsonl")}},
            "training_split": None, "validation_split": None, "test_split": None, "fewshot_split": None,
            f"{split}_split": split,
        }  # fmt: skip
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    command = ["evaluate", bloom, "--tasks", ",".join(TASKS), "--include-path", folder, "--stages", 1, "--threads", 1,
               "--out", tmp_path]  # fmt: skip
    result = CliRunner(env={"COLUMNS": "120"}).invoke(app, [str(word) for word in command])
    assert result.exit_code == 0, result.output
    (written,) = (tmp_path / "evaluated").glob("*/tasks.json")
    scores = json.loads(written.read_text())["scores"]
    expected = [("belebele", "hi"), ("belebele", "sw"), ("xcopa", "sw"), ("xnli", "hi"), ("xnli", "sw")]
    assert sorted((one["task"], one["language"]) for one in scores) == expected
    assert all(one["documents"] == 4 and one["bits_per_byte"] > 0 for one in scores)
    items = read_items(written.with_name("items.parquet"))
    assert len(items) == 4 * len(TASKS)
    rights = {name: [one.right for one in items if one.part == name] for name in TASKS}
    assert rights["belebele_hin_Deva"] == [0, 1, 2, 3] and rights["xcopa_sw"] == [0, 1, 0, 1]
    assert rights["xnli_hi"] == [0, 1, 2, 0]
