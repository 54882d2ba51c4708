"""Task files of lm-evaluation-harness on local data: two tasks, in three languages and in two."""

import json
from pathlib import Path

import yaml

from tests.support.models import TEXTS

#: A third of the documents have a text longer than the 40 tokens that the tests' models read.
LONG = 30


def write_tasks(folder: Path) -> Path:
    """``river_en|sw|zh`` (group ``river``) with a question, ``ford_en|sw`` without a context, as xnli has it."""
    folder.mkdir(parents=True)
    for language, text in (("en", TEXTS["en"]), ("sw", TEXTS["sw"]), ("zh", TEXTS["fr"])):
        words = text.split()
        documents = [
            {
                "question": " ".join((words * 4)[number : number + (LONG if number % 3 == 0 else 1 + number % 5)]),
                "answers": [words[(number * 7) % len(words)], " ".join(words[: 1 + number % 4]), words[-1] + "?"],
                "label": number % 3,
            }
            for number in range(9)
        ]
        _write_task(folder, f"river_{language}", documents, {"doc_to_text": "{{question}}", "doc_to_choice": "answers"})
        if language != "zh":
            whole = "{{[question + ', so ' + answers[0], question + ', yet ' + answers[1]]}}"
            fields = {"doc_to_text": "", "doc_to_choice": whole, "target_delimiter": ""}
            short = [one | {"label": one["label"] % 2} for one in documents if len(one["question"].split()) < LONG]
            _write_task(folder, f"ford_{language}", short, fields)
    _write(folder / "river.yaml", {"group": "river", "task": ["river_en", "river_sw", "river_zh"]})
    return folder


def _write_task(folder: Path, name: str, documents: list[dict], fields: dict) -> None:
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in documents), encoding="utf-8")
    _write(
        folder / f"{name}.yaml",
        {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(folder / "cache")},
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_target": "label",
            "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
            **fields,
        },
    )


def _write(path: Path, content: dict) -> None:
    path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
