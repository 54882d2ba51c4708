"""Tables of a sweep: languages × runs."""

from collections.abc import Mapping

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


def to_markdown(table: pd.DataFrame, corner: str = "language", digits: int = 3) -> str:
    """Render the table in Markdown, numbers with ``digits`` decimals."""
    names = [" ".join(column) if isinstance(column, tuple) else str(column) for column in table.columns]
    lines = [f"| {corner} | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
    for name, row in table.iterrows():
        lines.append(f"| {name} | " + " | ".join(f"{value:.{digits}f}" for value in row) + " |")
    return "\n".join(lines) + "\n"
