"""``mbs compare`` of two checkpoints on tasks: which of their answers differ by more than noise?"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from mbs_ray.errors import InputError
from mbs_ray.evaluation.paired_tasks import PairedAnswers, paired_answers
from mbs_ray.evaluation.task_items import ITEMS, TASKS, TaskItem, read_items
from mbs_ray.files import appearing, own_content, read_json

FILE = "comparison-of-tasks.csv"


@dataclass(frozen=True)
class TaskComparison:
    """Two checkpoints' answers compared, row by row; the rows lie in ``file`` as well."""

    a: str
    b: str
    rows: Sequence[PairedAnswers]
    file: Path


def has_tasks(folder: Path) -> bool:
    """Return whether a folder is one that ``mbs evaluate --tasks`` wrote."""
    return (folder / TASKS).is_file()


def compare_tasks(a: Path, b: Path, out: Path | None = None) -> TaskComparison:
    """Compare the answers in two folders of ``mbs evaluate --tasks``; the rows go to ``out``, or to B's folder.

    Raises :class:`InputError` where a folder has no answers, the questions differ, or ``out`` cannot be written.
    """
    (here, ones), (there, others) = _answers(a), _answers(b)
    rows = paired_answers(ones, others)
    path = (out or b) / FILE
    table = pd.DataFrame([_plain(row) for row in rows])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with appearing(path) as unfinished:
            table.to_csv(unfinished, index=False)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from error
    return TaskComparison(here, there, rows, path)


def _answers(folder: Path) -> tuple[str, list[TaskItem]]:
    settings, items = folder / TASKS, folder / ITEMS
    if not settings.is_file():
        raise InputError(f"{folder}: has no {TASKS}; give a folder that mbs evaluate --tasks wrote, or two runs")
    if not items.is_file():
        raise InputError(f"{items}: not there; an earlier version kept no answers: give mbs evaluate --tasks again")
    content = read_json(settings)
    with own_content(settings):
        return str(content["model"]), read_items(items)


def _plain(row: PairedAnswers) -> dict[str, Any]:
    low, high = (None, None) if row.interval is None else row.interval
    return {**{key: value for key, value in asdict(row).items() if key != "interval"}, "low": low, "high": high}
