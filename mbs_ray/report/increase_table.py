"""Tables of a sweep: languages × runs."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from mbs_ray.evaluation.metric_names import SUMMARIES
from mbs_ray.languages.facts import table_order


def increase_table(increases: Mapping[str, Mapping[str, float]]) -> pd.DataFrame:
    """Arrange run → language → perplexity increase as a table with languages as rows, in table order.

    ``increases`` holds the summary rows (``geomean``, ``worst``, groups of languages) as well; they come last.
    """
    table = pd.DataFrame({run: dict(values) for run, values in increases.items()})
    languages = table_order(row for row in table.index if row not in SUMMARIES)
    return table.loc[[*languages, *(row for row in SUMMARIES if row in table.index)]]


def mean_over(table: pd.DataFrame, columns: Mapping[str, tuple[str, str]]) -> pd.DataFrame:
    """Average runs that share a column (method, sampling): its seeds; in order of first appearance."""
    runs = pd.MultiIndex.from_tuples([columns[run] for run in table.columns], names=["method", "sampling"])
    return table.set_axis(runs, axis=1).T.groupby(level=[0, 1], sort=False).mean().T


@dataclass(frozen=True)
class SeedSpread:
    """Spread over seeds of a table of :func:`mean_over`: the sample standard deviation of each value, NaN where a
    column has one run, and the number of runs of each column."""

    deviations: pd.DataFrame
    runs: Mapping[tuple[str, str], int]

    @classmethod
    def over(cls, table: pd.DataFrame, columns: Mapping[str, tuple[str, str]]) -> "SeedSpread | None":
        """Measure the spread of the columns that share a column of the mean; None where none do."""
        runs = Counter(columns[run] for run in table.columns)
        if max(runs.values(), default=0) < 2:
            return None
        keys = pd.MultiIndex.from_tuples([columns[run] for run in table.columns], names=["method", "sampling"])
        # Infinite values have no deviation: NaN.
        grouped = table.set_axis(keys, axis=1).T.groupby(level=[0, 1], sort=False)
        return cls(grouped.std(ddof=1).T, dict(runs))

    def sampling(self, column: tuple[str, str]) -> str:
        """Name the sampling of a column, with the number of seeds where there are several."""
        return column[1] if self.runs[column] == 1 else f"{column[1]} ({self.runs[column]} seeds)"

    def text(self, row: str, column: tuple[str, str]) -> str:
        """Format the deviation of a value as ``± 0.012``; empty where it has none."""
        deviation = float(self.deviations[column].to_dict()[row])
        return f"± {deviation:.3f}" if math.isfinite(deviation) else ""


def to_markdown(
    table: pd.DataFrame, corner: str = "language", digits: int = 3, spread: SeedSpread | None = None
) -> str:
    """Render the table in Markdown, numbers with ``digits`` decimals, and with their ``spread`` over seeds."""
    columns: list[Any] = table.columns.to_list()
    if spread is not None:
        names = [f"{column[0]} {spread.sampling(column)}" for column in columns]
    else:
        names = [" ".join(column) if isinstance(column, tuple) else str(column) for column in columns]
    lines = [f"| {corner} | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
    for name, row in table.iterrows():
        cells = [f"{value:.{digits}f}" for value in row]
        if spread is not None:
            cells = [f"{cell} {spread.text(str(name), at)}".strip() for cell, at in zip(cells, columns, strict=True)]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
