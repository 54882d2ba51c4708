"""Two models on the same questions: McNemar's exact test of their answers, and the likelihood of the right ones.

Questions of one number in a task may be translations of each other: then a model that is better at one is so in every
language. Over all languages they count as one, for the test as for the interval.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mbs_ray.errors import InputError
from mbs_ray.evaluation.intervals import Interval, bootstrap_means, percentile_interval
from mbs_ray.evaluation.task_items import TaskItem
from mbs_ray.languages.facts import table_order

#: The same question, answered by A and by B.
Pair = tuple[TaskItem, TaskItem]
ALL = "all"
LEVEL = 0.05
#: Verdicts of a test that tells B from A.
WORSE, BETTER = "B is worse", "B is better"
#: The longest name of a kind of metric here.
HOLM = "mcnemar_p_holm"


@dataclass(frozen=True)
class PairedAnswers:
    """Answers of A and B to the same ``items`` questions of a task, or all tasks, in a language, or all languages.

    ``score_a`` and ``score_b``: mean accuracies. ``only_a`` and ``only_b``: questions that A, or B, alone answered
    right; of fractions, better than the other. ``p`` is McNemar's, exact and two-sided; ``adjusted`` the same
    after Holm, over all rows of its kind. ``bits``: bits per byte of the right answers, B − A, with ``interval``; None
    where no right one is told or one is not finite, or for the interval of one question.
    """

    task: str
    language: str
    items: int
    score_a: float
    score_b: float
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
        return WORSE if self.score_a > self.score_b else BETTER


def mcnemar(only_a: int, only_b: int) -> float:
    """Compute McNemar's exact two-sided p: are those that one alone got right shared out as by a fair coin?

    McNemar, Psychometrika 12, 1947; the exact form is the binomial test.
    """
    # A third of a second to import, and only tasks need it.
    from scipy.stats import binomtest

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
    by_row: dict[tuple[str, str], list[Pair]] = {}
    for pair in pairs:
        for task in (pair[0].task, ALL):
            by_row.setdefault((task, pair[0].language), []).append(pair)
    languages = table_order({one.language for one in a})
    tasks = list(dict.fromkeys(one.task for one in a))
    several = [ALL] if len(tasks) > 1 else []
    rows = []
    for kind in (tasks, several):
        keys = [(task, code) for task in kind for code in languages if (task, code) in by_row]
        rows += _with_holm([_row(*key, by_row[key]) for key in keys])
    return rows + _with_holm([_row(ALL, ALL, pairs)])


def holm_over_runs(runs: Sequence[Sequence[PairedAnswers]]) -> list[list[PairedAnswers]]:
    """Adjust the last row of each run, over all, by Holm over these runs: all of them are compared with one model."""
    adjusted = _with_holm([rows[-1] for rows in runs])
    return [[*rows[:-1], last] for rows, last in zip(runs, adjusted, strict=True)]


def paired_metrics(rows: Iterable[PairedAnswers]) -> dict[str, float]:
    """Return MLflow names and values of rows whose A is the dense model, four a row: ``mcnemar_p/xnli/sw``, …

    Over several tasks, and over all languages, their names are ``all``.
    """
    metrics: dict[str, float] = {}
    for row in rows:
        own = {"mcnemar_p": row.p, HOLM: row.adjusted, "only_dense": row.only_a, "only_compressed": row.only_b}
        metrics |= {f"{name}/{row.task}/{row.language}": float(value) for name, value in own.items()}
    return metrics


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


def _row(task: str, language: str, pairs: Sequence[Pair]) -> PairedAnswers:
    together = _by_number(pairs) if language == ALL else [[pair] for pair in pairs]
    changes = [math.fsum(other.score - one.score for one, other in own) for own in together]
    p = mcnemar(sum(change < 0 for change in changes), sum(change > 0 for change in changes))
    only_a = sum(one.score > other.score for one, other in pairs)
    only_b = sum(one.score < other.score for one, other in pairs)
    score_a, score_b = (math.fsum(pair[at].score for pair in pairs) / max(len(pairs), 1) for at in (0, 1))
    bits, interval = _bits(language, together)
    return PairedAnswers(task, language, len(pairs), score_a, score_b, only_a, only_b, p, p, bits, interval)


def _by_number(pairs: Iterable[Pair]) -> list[list[Pair]]:
    """Group questions of all languages by task and number."""
    groups: dict[tuple[str, int], list[Pair]] = {}
    for pair in pairs:
        groups.setdefault((pair[0].task, pair[0].item), []).append(pair)
    return list(groups.values())


def _bits(language: str, together: Sequence[Sequence[Pair]]) -> tuple[float | None, Interval | None]:
    """Compute bits per byte of the right answers, B − A, and its interval by a bootstrap over groups of questions."""
    changes, sizes = [], []
    for group in together:
        known = [
            (other.bits - one.bits, one.bytes[one.right])
            for one, other in group
            if one.right is not None and one.bits is not None and other.bits is not None
        ]
        if known:
            changes.append(math.fsum(change for change, _ in known))
            sizes.append(sum(size for _, size in known))
    if not changes or not np.isfinite(changes).all():
        return None, None
    values, tokens = np.array(changes), np.array(sizes, dtype=np.int64)
    return float(values.sum() / tokens.sum()), percentile_interval(bootstrap_means(values, tokens, language))


def _with_holm(rows: Sequence[PairedAnswers]) -> list[PairedAnswers]:
    return [replace(row, adjusted=p) for row, p in zip(rows, holm([row.p for row in rows]), strict=True)]
