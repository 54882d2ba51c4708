"""The questions of tasks one by one: was the answer right, and how likely was each answer? Kept in a parquet file."""

import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mbs_ray.evaluation.task_languages import task_language
from mbs_ray.files import appearing, own_content

#: Files of a checkpoint's scores on tasks, and of its answers to every question.
TASKS, ITEMS = "tasks.json", "items.parquet"
_COLUMNS = pa.schema(
    [
        ("task", pa.string()),
        ("language", pa.string()),
        ("part", pa.string()),
        ("item", pa.int64()),
        ("question", pa.string()),
        ("score", pa.float64()),
        ("right", pa.int32()),
        ("loglikelihoods", pa.list_(pa.float64())),
        ("bytes", pa.list_(pa.int32())),
    ]
)


@dataclass(frozen=True)
class TaskItem:
    """One question of a task: ``part`` is the harness's name of the task, ``item`` its number there.

    ``question`` is the harness's hash of its document and context. ``score`` is its accuracy: 1 or 0, in tasks of
    several right answers a fraction. ``right`` is the place of the right answer, None where there is not the one.
    ``loglikelihoods``, in nats, and ``bytes``, of UTF-8, are those of the answers.
    """

    task: str
    language: str
    part: str
    item: int
    question: str
    score: float
    right: int | None
    loglikelihoods: tuple[float, ...]
    bytes: tuple[int, ...]

    @property
    def bits(self) -> float | None:
        """Bits of the right answer, perhaps not finite; None where none is told, or one of no bytes."""
        if self.right is None or not self.bytes[self.right]:
            return None
        return -self.loglikelihoods[self.right] / math.log(2)

    @property
    def key(self) -> tuple[str, int]:
        return self.part, self.item


def items_of(
    name: str, samples: Iterable[Mapping[str, Any]], choices: Callable[[Any], Any], conditional_alone: bool = True
) -> list[TaskItem]:
    """Read the questions of the harness's task ``name`` from its samples, each once, in their order.

    ``choices`` gives the answers of a document. ``conditional_alone``: whether every request is an answer in its
    context; else the second half has no context.
    """
    task, language, _ = task_language(name)
    found: dict[int, TaskItem] = {}
    for one in samples:
        answers = one["arguments"] if conditional_alone else one["arguments"][: len(one["arguments"]) // 2]
        likelihoods = tuple(float(first[0]) for first, *_ in one["resps"][: len(answers)])
        # One answer, whose likelihood alone is asked for, is the right one.
        right = 0 if len(answers) == 1 else _place(one["target"], choices(one["doc"]), len(answers))
        found.setdefault(
            one["doc_id"],
            TaskItem(
                task,
                language,
                name,
                one["doc_id"],
                f"{one['doc_hash'][:16]}-{one['prompt_hash'][:16]}",
                float(one["acc"]),
                right,
                likelihoods,
                tuple(len(str(answer).encode()) for _, answer in answers),
            ),
        )
    items = list(found.values())
    if all(one.score in (0, 1) for one in items):
        return items
    # Shares of likelihood on several right answers: there is not the one.
    return [replace(one, right=None) for one in items]


def _place(target: Any, choices: Any, answers: int) -> int | None:
    """Return the place of the target among the answers, as the harness finds it; None where it is not the one."""
    if isinstance(target, str):
        named = [str(one) for one in choices] if isinstance(choices, Sequence) else []
        return named.index(target) if target in named[:answers] else None
    try:
        place = operator.index(target)
    except TypeError:
        return None
    return place if 0 <= place < answers else None


def bits_per_byte(items: Sequence[TaskItem]) -> float | None:
    """Compute bits per byte of the right answers: Σ bits ÷ Σ bytes over the items.

    None where no right one is told, or the likelihood of one is not finite.
    """
    known = [(one.bits, one.bytes[one.right]) for one in items if one.bits is not None and one.right is not None]
    if not known or not all(math.isfinite(bits) for bits, _ in known):
        return None
    return math.fsum(bits for bits, _ in known) / sum(size for _, size in known)


def write_items(path: Path, items: Iterable[TaskItem]) -> None:
    """Write items to a parquet file, which appears whole or not at all."""
    with appearing(path) as unfinished:
        pq.write_table(pa.Table.from_pylist([asdict(one) for one in items], _COLUMNS), unfinished, compression="zstd")


def read_items(path: Path) -> list[TaskItem]:
    """Read items that :func:`write_items` wrote. Raises :class:`InputError` where the file is damaged."""
    with own_content(path):
        try:
            rows = pq.read_table(path, schema=_COLUMNS).to_pylist()
        except pa.ArrowException as error:
            raise ValueError(str(error)) from error
    lists = ("loglikelihoods", "bytes")
    return [TaskItem(**{**row, **{name: tuple(row[name]) for name in lists}}) for row in rows]
