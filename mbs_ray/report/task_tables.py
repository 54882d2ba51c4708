"""The tables of tasks on the report page: languages × runs, each run against its dense model on the same questions."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from mbs_ray.evaluation.intervals import interval_text
from mbs_ray.evaluation.paired_tasks import ALL, BETTER, WORSE, PairedAnswers, holm_over_runs, paired_answers
from mbs_ray.evaluation.scored_tasks import ScoredTasks, dense_counterpart
from mbs_ray.evaluation.task_items import TaskItem, bits_per_byte
from mbs_ray.languages.codes import language_name
from mbs_ray.report.page_tables import Cell, Grid
from mbs_ray.report.run_results import RunResults

_MARKS = {WORSE: "worse", BETTER: "better"}
_DENSE = ("the dense model", "dense")
#: A task and a language, or ALL in the place of either: a row of :func:`paired_answers`.
_Row = tuple[str, str]


@dataclass(frozen=True)
class TaskTables:
    """Answers of one model's runs to the same questions: (task, accuracy, bits per byte of the right answers).

    ``dense`` says whether the dense model was asked them too, with which all runs are compared then.
    """

    title: str
    asked: str
    dense: bool
    tables: Sequence[tuple[str, Grid, Grid | None]]


@dataclass(frozen=True)
class _Column:
    """A run's answers: rows against the dense model, or against itself where that one was not asked; bits by row."""

    run: RunResults
    rows: Mapping[_Row, PairedAnswers]
    bits: Mapping[_Row, float | None]


def task_tables(runs: Sequence[RunResults]) -> list[TaskTables]:
    """Make tables for each model and each set of questions that checkpoints of its runs were asked.

    Raises :class:`InputError` where a file of answers is damaged.
    """
    groups: dict[tuple[str, tuple[str, ...]], list[tuple[RunResults, ScoredTasks]]] = {}
    for run in runs:
        newest = {one.asked: one for one in run.tasks}
        for asked, one in newest.items():
            groups.setdefault((run.facts.fingerprints["model"], asked), []).append((run, one))
    return [_tables(own) for own in groups.values()]


def _tables(own: Sequence[tuple[RunResults, ScoredTasks]]) -> TaskTables:
    first, asked = own[0]
    dense = dense_counterpart(first.dense_tasks, asked, first.facts.fingerprints["model"])
    answers = None if dense is None else dense.items()
    columns = _columns(own, answers)
    before = None if answers is None else _bits(answers, columns[0].rows)
    rows = list(columns[0].rows)
    tasks = list(dict.fromkeys(task for task, _ in rows if task != ALL))
    tables = []
    # The row over everything closes the only table, or that of all tasks together.
    last = tasks[0] if len(tasks) == 1 else ALL
    for task in dict.fromkeys([*tasks, last]):
        shown = [row for row in rows if (row[0] == task and row[1] != ALL) or (task == last and row[1] == ALL)]
        bits = _bits_grid(columns, shown, before)
        tables.append(("all tasks" if task == ALL else task, _accuracy_grid(columns, shown, dense is not None), bits))
    return TaskTables(f"{first.facts.model}: {', '.join(tasks)}", _asked(asked, columns), dense is not None, tables)


def _asked(one: ScoredTasks, columns: Sequence[_Column]) -> str:
    """Say in words what was asked, and how."""
    limit, shots = one.settings["limit"], one.settings["shots"]
    few = "" if limit is None else f", at most {limit:,} of a task"
    return (
        f"{columns[0].rows[ALL, ALL].items:,} questions{few}, {shots} shots, forward in "
        f"{one.settings['compute_dtype']}, lm-evaluation-harness {one.settings['version']['lm_eval']}"
    )


def _columns(own: Sequence[tuple[RunResults, ScoredTasks]], dense: Sequence[TaskItem] | None) -> list[_Column]:
    paired, bits = [], []
    for _, one in own:
        items = one.items()
        paired.append(paired_answers(items if dense is None else dense, items))
        bits.append(_bits(items, [(row.task, row.language) for row in paired[-1]]))
    return [
        _Column(run, {(row.task, row.language): row for row in rows}, known)
        for (run, _), rows, known in zip(own, holm_over_runs(paired), bits, strict=True)
    ]


def _bits(items: Sequence[TaskItem], rows: Iterable[_Row]) -> dict[_Row, float | None]:
    """Compute bits per byte of the right answers by row; None where :func:`bits_per_byte` has none."""
    by_row: dict[_Row, list[TaskItem]] = {}
    for one in items:
        for key in ((one.task, one.language), (ALL, one.language), (ALL, ALL)):
            by_row.setdefault(key, []).append(one)
    return {row: bits_per_byte(by_row[row]) for row in rows}


def _accuracy_grid(columns: Sequence[_Column], rows: Sequence[_Row], dense: bool) -> Grid:
    """Show accuracies in percent; where the test says worse, the darker, the more is lost."""
    worse = [own.rows[row] for own in columns for row in rows if own.rows[row].verdict == WORSE]
    most = max((row.score_a - row.score_b for row in worse), default=1.0)

    def of_dense(row: _Row) -> Cell:
        score = 100 * columns[0].rows[row].score_a
        return Cell(score, f"{score:.1f}")

    def cell(column: _Column, row: _Row) -> Cell:
        found = column.rows[row]
        score = 100 * found.score_b
        if not dense:
            return Cell(score, f"{score:.1f}")
        test = f"−{found.only_a} +{found.only_b}, p {found.adjusted:.2g}"
        heat = (found.score_a - found.score_b) / most if found.verdict == WORSE else None
        return Cell(score, f"{score:.1f}", test, heat=heat, mark=_MARKS.get(found.verdict, ""))

    return _grid(columns, rows, of_dense if dense else None, cell)


def _bits_grid(
    columns: Sequence[_Column], rows: Sequence[_Row], before: Mapping[_Row, float | None] | None
) -> Grid | None:
    """Show bits per byte of the right answers, and their change; coloured where all of its interval is loss.

    None where no row has any.
    """
    if all(own.bits[row] is None for own in columns for row in rows):
        return None
    lost = {(at, row): _loss(own.rows[row]) for at, own in enumerate(columns) for row in rows}
    most = max((one for one in lost.values() if one is not None), default=1.0)

    def cell(column: _Column, row: _Row) -> Cell:
        change = "" if before is None else interval_text(column.rows[row].interval, "+.3f")
        loss = _loss(column.rows[row])
        return _number(column.bits[row], change, None if loss is None else loss / most)

    return _grid(columns, rows, None if before is None else lambda row: _number(before[row]), cell)


def _loss(row: PairedAnswers) -> float | None:
    """Return the bits per byte that were lost for certain; None where they are not."""
    return row.bits if row.interval is not None and row.bits is not None and row.interval.low > 0 else None


def _number(value: float | None, interval: str = "", heat: float | None = None) -> Cell:
    return Cell(None) if value is None else Cell(value, f"{value:.3f}", interval, heat=heat)


def _grid(
    columns: Sequence[_Column],
    rows: Sequence[_Row],
    of_dense: Callable[[_Row], Cell] | None,
    cell: Callable[[_Column, _Row], Cell],
) -> Grid:
    shown = []
    for row in rows:
        first = [] if of_dense is None else [of_dense(row)]
        name = "languages" if row[1] == ALL else language_name(row[1])
        shown.append((row[1], name, [*first, *(cell(column, row) for column in columns)]))
    methods = [(name, len(list(own))) for name, own in groupby(one.run.facts.method for one in columns)]
    titles = [(one.run.facts.label, one.run.short_name) for one in columns]
    if of_dense is not None:
        methods, titles = [("", 1), *methods], [_DENSE, *titles]
    return Grid(methods, titles, shown)
