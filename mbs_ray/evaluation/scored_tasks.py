"""Scores on tasks that lie under ``<out>/evaluated``, found by what was scored: folders may have moved since."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mbs_ray.evaluation.task_items import ITEMS, TASKS, TaskItem, read_items
from mbs_ray.evaluation.zero_shot import TaskScore
from mbs_ray.files import own_content, read_json

#: Fields of tasks.json that must be equal for two models' answers to compare.
_ASKED = ("tasks", "shots", "limit", "compute_dtype", "questions")
#: Parts of the path of a run's checkpoint, from its sweep on: ``demo/runs/wanda-50-equal/checkpoint``.
_FROM_SWEEP = 4


@dataclass(frozen=True)
class ScoredTasks:
    """One checkpoint's scores, as ``folder`` has them; ``settings`` are the fields of its tasks.json but the scores.

    ``questions`` among them is a digest of all that was asked, ``checkpoint_digest`` one of config and weights; None
    for a checkpoint without a manifest.
    """

    folder: Path
    settings: Mapping[str, Any]
    scores: tuple[TaskScore, ...]

    @property
    def asked(self) -> tuple[str, ...]:
        """All that must be equal for two models' answers to compare."""
        return (*(str(self.settings[field]) for field in _ASKED), str(self.settings["version"]["lm_eval"]))

    def is_of_model(self, fingerprint: str) -> bool:
        """Return whether these are scores of the model with this fingerprint."""
        return bool(self.settings["fingerprint"] == fingerprint)

    def is_of_checkpoint(self, checkpoint: Path, digest: str | None) -> bool:
        """Return whether these are scores of a run's checkpoint, wherever it lay by then.

        Where no manifest told its ``digest``, the names of sweep and run decide.
        """
        told = self.settings["checkpoint_digest"]
        if told is not None and digest is not None:
            return bool(told == digest)
        return Path(self.settings["model"]).parts[-_FROM_SWEEP:] == checkpoint.parts[-_FROM_SWEEP:]

    def items(self) -> list[TaskItem]:
        """Read the answers to all questions."""
        return read_items(self.folder / ITEMS)


def scored_tasks(evaluated: Path) -> list[ScoredTasks]:
    """List the scores in a folder, the newest last. Raises :class:`InputError` where a file is damaged.

    Those of an earlier version, which did not say what was asked, are left out.
    """
    files = [file for file in evaluated.glob(f"*/{TASKS}") if file.with_name(ITEMS).is_file()]
    found = [_read(file) for file in sorted(files, key=lambda one: (one.stat().st_mtime_ns, one))]
    return [one for one in found if "questions" in one.settings]


def dense_counterpart(found: Iterable[ScoredTasks], one: ScoredTasks, fingerprint: str) -> ScoredTasks | None:
    """Return the newest scores of the model with this fingerprint on what ``one`` was asked; None without any."""
    alike = [other for other in found if other.is_of_model(fingerprint) and other.asked == one.asked]
    return alike[-1] if alike else None


def _read(file: Path) -> ScoredTasks:
    content = read_json(file)
    with own_content(file):
        scores = tuple(TaskScore(**one) for one in content.pop("scores"))
        _ = content["model"], content["fingerprint"], content["version"]["lm_eval"]
        return ScoredTasks(file.parent, content, scores)
