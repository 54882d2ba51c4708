"""Two models on the same questions: McNemar's exact test of their answers, and the likelihood of the right ones."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import binomtest

from mbs_ray.errors import InputError
from mbs_ray.evaluation.intervals import Interval, bootstrap_means, percentile_interval
from mbs_ray.evaluation.task_items import TaskItem
from mbs_ray.languages.facts import table_order

ALL = "all"
LEVEL = 0.05


@dataclass(frozen=True)
class PairedAnswers:
    """Answers of A and B to the same ``items`` questions of a task, or all tasks, in a language, or all languages.

    ``only_a`` and ``only_b``: questions that A alone, or B alone, answered right. ``p`` is McNemar's, exact and
    two-sided; ``adjusted`` the same after Holm, over all rows of its kind. ``bits``: bits per byte of the right
    answers, B − A, with ``interval``; None where no right one is told, or for the interval of one question.
    """

    task: str
    language: str
    items: int
    right_a: int
    right_b: int
    only_a: int
    only_b: int
    p: float
    adjusted: float
    bits: float | None
    interval: Interval | None

    @property
    def verdict(self) -> str:
        """Verdict in words on the right answers, at 5 % after Holm's adjustment."""
        if self.adjusted > LEVEL:
            return "within noise"
        return "B is worse" if self.only_a > self.only_b else "B is better"


def mcnemar(only_a: int, only_b: int) -> float:
    """Compute McNemar's exact two-sided p: are those that one alone got right shared out as by a fair coin?

    McNemar, Psychometrika 12, 1947; the exact form is the binomial test.
    """
    return float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def holm(values: Sequence[float]) -> list[float]:
    """Adjust p values so that all of them together are wrong with the probability of one: Holm, 1979."""
    adjusted, least = [0.0] * len(values), 0.0
    for place, at in enumerate(sorted(range(len(values)), key=lambda one: values[one])):
        least = max(least, min(1.0, (len(values) - place) * values[at]))
        adjusted[at] = least
    return adjusted


def paired_answers(a: Sequence[TaskItem], b: Sequence[TaskItem]) -> list[PairedAnswers]:
    """Compare answers by task and language, by language over several tasks, and over all: rows in this order.

    Raises :class:`InputError` naming the task where the questions differ.
    """
    refuse_other_questions(a, b)
    others = {one.key: one for one in b}
    pairs = [(one, others[one.key]) for one in a]
    languages = table_order({one.language for one in a})
    tasks = list(dict.fromkeys(one.task for one in a))
    rows = [_row(task, code, _of(pairs, task, code)) for task in tasks for code in languages]
    rows = _with_holm([row for row in rows if row.items])
    if len(tasks) > 1:
        rows += _with_holm([_row(ALL, code, _of(pairs, ALL, code)) for code in languages])
    return rows + _with_holm([_row(ALL, ALL, pairs)])


def refuse_other_questions(a: Sequence[TaskItem], b: Sequence[TaskItem]) -> None:
    """Raise :class:`InputError` where two models were not asked the same questions."""
    here, there = ({one.key: one.question for one in items} for items in (a, b))
    for name, ones, others in (("A", here, there), ("B", there, here)):
        if missing := next((key for key in ones if key not in others), None):
            raise InputError(
                f"task {missing[0]}: question {missing[1]} was asked of {name} alone; evaluate both on the same tasks "
                "with the same --limit"
            )
    if different := next((key for key in here if here[key] != there[key]), None):
        raise InputError(
            f"task {different[0]}: question {different[1]} is another in A than in B; evaluate both with the same "
            "--shots, task files and version of the harness"
        )


def _of(pairs: Iterable[tuple[TaskItem, TaskItem]], task: str, language: str) -> list[tuple[TaskItem, TaskItem]]:
    return [pair for pair in pairs if task in (ALL, pair[0].task) and pair[0].language == language]


def _row(task: str, language: str, pairs: Sequence[tuple[TaskItem, TaskItem]]) -> PairedAnswers:
    only_a = sum(one.correct and not other.correct for one, other in pairs)
    only_b = sum(other.correct and not one.correct for one, other in pairs)
    bits, interval = _bits(language, pairs)
    p = mcnemar(only_a, only_b)
    right_a, right_b = (sum(pair[at].correct for pair in pairs) for at in (0, 1))
    return PairedAnswers(task, language, len(pairs), right_a, right_b, only_a, only_b, p, p, bits, interval)


def _bits(language: str, pairs: Sequence[tuple[TaskItem, TaskItem]]) -> tuple[float | None, Interval | None]:
    known = [
        (other.bits - one.bits, one.bytes[one.right])
        for one, other in pairs
        if one.right is not None and one.bits is not None and other.bits is not None
    ]
    if not known:
        return None, None
    changes, sizes = np.array([change for change, _ in known]), np.array([size for _, size in known], dtype=np.int64)
    interval = percentile_interval(bootstrap_means(changes, sizes, language))
    return float(changes.sum() / sizes.sum()), interval


def _with_holm(rows: Sequence[PairedAnswers]) -> list[PairedAnswers]:
    return [replace(row, adjusted=p) for row, p in zip(rows, holm([row.p for row in rows]), strict=True)]
