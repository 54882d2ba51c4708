"""Tables that commands print."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from rich.table import Table

from mbs_ray.evaluation.comparison import Difference
from mbs_ray.evaluation.intervals import interval_text
from mbs_ray.evaluation.language_angles import Similarity
from mbs_ray.evaluation.metric_names import GEOMEAN, SUMMARIES
from mbs_ray.evaluation.paired_tasks import BETTER, WORSE, PairedAnswers, holm_over_runs
from mbs_ray.evaluation.perplexity import LanguageScore, perplexity_interval
from mbs_ray.evaluation.text_warnings import unknown_warning
from mbs_ray.evaluation.zero_shot import TaskScore, language_means, overall_mean
from mbs_ray.languages.codes import GROUPS
from mbs_ray.report.increase_table import SeedSpread

if TYPE_CHECKING:
    from mbs_ray.driver.evaluate_sweep import CheckpointScores

#: Languages of a short view, without and with groups of languages.
_SHOWN, _SHOWN_BESIDE_GROUPS = 5, 4


def increase_title(table: str) -> str:
    """Title of a table of increases in a terminal."""
    return f"perplexity increase: {table}"


def increase_views(
    title: str, increases: pd.DataFrame, width: int, spread: SeedSpread | None = None
) -> Iterator[Table]:
    """Yield a table languages × (method, sampling) for a terminal; one per method, or more, where it is too wide.

    The best of each language and method is set in bold; its ``spread`` over seeds stands behind a mean.
    """
    best = increases.T.groupby(level=0).min().T
    columns: list[Any] = increases.columns.to_list()
    shown = {column: column[1] if spread is None else spread.sampling(column) for column in columns}
    whole = _fitting(shown, columns, width)
    methods = dict.fromkeys(method for method, _ in columns)
    parts = [[column for column in columns if column[0] == method] for method in methods]
    for part in [columns] if len(whole) == 1 else parts:
        for fitting in _fitting(shown, part, width):
            yield _increase_view(title, increases[fitting], best, shown, spread)


def _fitting(
    shown: Mapping[tuple[str, str], str], columns: Sequence[tuple[str, str]], width: int
) -> list[list[tuple[str, str]]]:
    """Split the columns, whose samplings are ``shown`` so, into groups, each of which fits a terminal of this width."""
    cut: list[list[tuple[str, str]]] = []
    left = 0
    for column in columns:
        space = max(len(column[0]), len(shown[column])) + 3
        if not cut or space > left:
            cut.append([])
            left = width - 13
        cut[-1].append(column)
        left -= space
    return cut


def _increase_view(
    title: str,
    increases: pd.DataFrame,
    best: pd.DataFrame,
    shown: Mapping[tuple[str, str], str],
    spread: SeedSpread | None,
) -> Table:
    table = Table(title=title)
    table.add_column("language")
    columns: list[Any] = increases.columns.to_list()
    for column in columns:
        table.add_column(f"{column[0]}\n{shown[column]}", justify="right")
    for language, values in zip(increases.index, increases.to_numpy(), strict=True):
        lowest: list[Any] = [best.at[language, method] for method, _ in columns]
        cells = [_increase(*pair) for pair in zip(values, lowest, strict=True)]
        if spread is not None:
            cells = [
                f"{cell} {spread.text(str(language), at)}".strip() for cell, at in zip(cells, columns, strict=True)
            ]
        table.add_row(str(language), *cells)
    if spread is not None:
        table.caption = "means over seeds ± their sample standard deviation"
    return table


def short_increase_view(title: str, increases: pd.DataFrame) -> Table:
    """Show some of the languages, spread evenly over the table's order, and the summaries, one row per run.

    It fits 80 columns. The best of each language and method is set in bold.
    """
    rows = [str(row) for row in increases.index if row not in SUMMARIES]
    summaries = [row for row in SUMMARIES if row in increases.index]
    grouped = any(row in GROUPS for row in summaries)
    wanted = np.linspace(0, len(rows) - 1, _SHOWN_BESIDE_GROUPS if grouped else _SHOWN)
    shown = [rows[at] for at in sorted({round(one) for one in wanted})]
    caption = f"{len(shown)} of {len(rows)} languages; bold: the best of a method"
    # With groups there is no room for spaces beside the lines.
    table = Table(title=title, caption=caption, padding=(0, 0) if grouped else (0, 1))
    table.add_column("")
    for column in (*shown, *summaries):
        table.add_column("-\n".join(column.split("-")) if grouped else column, justify="right")
    columns: list[Any] = increases.columns.to_list()
    for method in dict.fromkeys(method for method, _ in columns):
        own = increases.loc[[*shown, *summaries], method]
        table.add_row(method)
        for sampling in own.columns:
            cells = [_increase(value, low) for value, low in zip(own[sampling], own.min(axis=1), strict=True)]
            table.add_row(f"  {sampling}", *cells)
    return table


def _increase(value: float, lowest: float) -> str:
    if math.isnan(value):
        return "–"  # a run of an earlier version has no groups
    return f"[bold]{value:.3f}[/]" if value == lowest else f"{value:.3f}"


def score_table(title: str, scores: Mapping[str, LanguageScore]) -> Table:
    """Perplexity and bits per byte of each language, and what they were counted over."""
    columns = ("language", "perplexity", "95 % interval", "bits per byte", "tokens", "bytes", "documents")
    table = _table(title, *columns)
    table.caption = unknown_warning({language: one.unknown for language, one in scores.items()})
    for language, one in scores.items():
        counts = (f"{one.tokens:,}", f"{one.bytes:,}", f"{one.documents:,}")
        interval = interval_text(perplexity_interval(language, one))
        table.add_row(language, f"{one.perplexity:.3f}", interval, f"{one.bits_per_byte:.4f}", *counts)
    return table


def similarity_table(title: str, similarity: Similarity, block: int, statistics: Sequence[str]) -> Table:
    """Show each language's nearest and farthest other one, and its own two halves, by each of the statistics."""
    columns = (f"{one}:\n{what}" for one in statistics for what in ("nearest", "farthest", "halves"))
    table = _table(title, "language", *columns)
    shown: dict[str, list[str]] = {language: [] for language in similarity.languages}
    for statistic in statistics:
        for language, angles in similarity.degrees(statistic, block).items():
            others = angles.drop(language).sort_values()
            for end in (0, -1):
                shown[str(language)].append(f"{others.index[end]} {_degrees(others.iloc[end])}")
            shown[str(language)].append(_degrees(similarity.degrees_of_halves(statistic, block)[str(language)]))
    for language, cells in shown.items():
        table.add_row(language, *cells)
    return table


def _degrees(angle: float) -> str:
    return f"{angle:.0f}°" if angle >= 9.95 else f"{angle:.1f}°"


def comparison_table(title: str, differences: Mapping[str, Difference]) -> Table:
    """Show nll of B minus A, perplexity of B over A, and whether that is more than noise."""
    table = Table(title=title)
    table.add_column("language")
    for column in ("nll per token, B − A", "95 % interval", "perplexity, B ÷ A", "95 % interval"):
        table.add_column(column, justify="right")
    table.add_column("")
    for row, one in differences.items():
        if row == GEOMEAN:
            table.add_section()
        nll = (f"{one.nll:+.4f}", interval_text(one.interval, "+.4f"))
        table.add_row(row, *nll, f"{one.ratio:.4f}", interval_text(one.ratio_interval, ".4f"), one.verdict)
    return table


def paired_table(title: str, rows: Sequence[PairedAnswers]) -> Table:
    """Show accuracies in percent, questions that one alone answered, p, and bits per byte of the right answers."""
    table = Table(title=title)
    for column in ("task", "language"):
        table.add_column(column)
    for column in ("questions", "A, %", "B, %", "A alone", "B alone", "p", "Holm", "bits/byte, B − A", "95 %"):
        table.add_column(column, justify="right")
    table.add_column("")
    for row, following in zip(rows, [*rows[1:], None], strict=True):
        shares = (f"{100 * share:.1f}" for share in (row.score_a, row.score_b))
        bits = "" if row.bits is None else f"{row.bits:+.3f}"
        table.add_row(
            row.task, row.language, f"{row.items:,}", *shares, f"{row.only_a}", f"{row.only_b}", f"{row.p:.3g}",
            f"{row.adjusted:.3g}", bits, interval_text(row.interval, "+.3f"), row.verdict,
            end_section=following is not None and following.task != row.task,
        )  # fmt: skip
    return table


def sweep_tasks_table(title: str, scores: "Sequence[CheckpointScores]") -> Table:
    """Show a row per checkpoint of a sweep: accuracy in percent, McNemar's test against dense, languages that differ.

    The mean is that over languages, as of one checkpoint. The test is over all questions, and its Holm over the runs
    of one dense model.
    """
    table = Table(title=title)
    table.add_column("model")
    for column in ("mean, %", "dense alone", "run alone", "p", "Holm"):
        table.add_column(column, justify="right")
    for column in ("worse in", "better in"):
        table.add_column(column)
    begins = [at for at, one in enumerate(scores) if one.dense]
    for begin, end in zip(begins, [*begins[1:], len(scores)], strict=True):
        compared = [one.result.paired for one in scores[begin:end] if one.result.paired is not None]
        paired = iter(holm_over_runs(compared))
        for at, one in enumerate(scores[begin:end], begin + 1):
            rows = [] if one.result.paired is None else next(paired)
            mean = f"{100 * overall_mean(one.result.scores):.2f}"
            table.add_row(one.label, mean, *_against_dense(rows), end_section=at == end)
    return table


def _against_dense(rows: Sequence[PairedAnswers]) -> list[str]:
    """Show the test over all questions, and in which languages, in any task, a run differs: six cells."""
    if not rows:
        return [""] * 6
    last = rows[-1]
    differ = (" ".join(dict.fromkeys(one.language for one in rows if one.verdict == said)) for said in (WORSE, BETTER))
    return [str(last.only_a), str(last.only_b), f"{last.p:.3g}", f"{last.adjusted:.3g}", *differ]


def accuracy_table(title: str, scores: Sequence[TaskScore]) -> Table:
    """Show the accuracy in percent, with lm-eval's standard error, of each language in each task that has it."""
    tasks = list(dict.fromkeys(one.task for one in scores))
    cells = {(one.task, one.language): _accuracy(one) for one in scores}
    table = _table(title, "language", *tasks, "mean")
    for language, mean in language_means(scores).items():
        table.add_row(language, *(cells.get((task, language), "") for task in tasks), f"{100 * mean:.2f}")
    table.add_row("all", *[""] * len(tasks), f"{100 * overall_mean(scores):.2f}")
    return table


def answer_table(title: str, scores: Sequence[TaskScore]) -> Table:
    """Show bits per byte of the right answers of each language in each task that has it."""
    tasks = list(dict.fromkeys(one.task for one in scores))
    cells = {(one.task, one.language): one.bits_per_byte for one in scores if one.bits_per_byte is not None}
    table = _table(title, "language", *tasks)
    for language in language_means(scores):
        own = (cells.get((task, language)) for task in tasks)
        table.add_row(language, *("" if value is None else f"{value:.4f}" for value in own))
    return table


def _accuracy(score: TaskScore) -> str:
    error = "" if score.stderr is None else f" ± {100 * score.stderr:.2f}"
    return f"{100 * score.accuracy:.2f}{error}"


def _table(title: str, *columns: str) -> Table:
    """Make an empty table with words aligned to the left and numbers to the right."""
    table = Table(title=title)
    for column in columns:
        table.add_column(column, justify="left" if column in ("language", "name") else "right")
    return table
