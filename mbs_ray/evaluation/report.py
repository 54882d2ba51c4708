"""Tables of a sweep: languages × runs."""

from collections.abc import Mapping

import pandas as pd

SUMMARIES = ("geomean", "worst")


def increase_table(increases: Mapping[str, Mapping[str, float]]) -> pd.DataFrame:
    """Run → language → perplexity increase as a table with languages as rows.

    ``increases`` holds the two summary rows ``geomean`` and ``worst`` as well; they come last.
    """
    table = pd.DataFrame({run: dict(values) for run, values in increases.items()})
    languages = [row for row in table.index if row not in SUMMARIES]
    return table.loc[[*languages, *(row for row in SUMMARIES if row in table.index)]]


def mean_over(table: pd.DataFrame, groups: Mapping[str, str]) -> pd.DataFrame:
    """Average columns that belong to one group (the seeds of a run), in order of first appearance."""
    names = list(dict.fromkeys(groups[column] for column in table.columns))
    return pd.DataFrame({name: table[[c for c in table.columns if groups[c] == name]].mean(axis=1) for name in names})


def to_markdown(table: pd.DataFrame, corner: str = "language", digits: int = 3) -> str:
    """The table in Markdown, numbers with ``digits`` decimals."""
    lines = [f"| {corner} | " + " | ".join(str(column) for column in table.columns) + " |"]
    lines.append("|---|" + "---:|" * len(table.columns))
    for name, row in table.iterrows():
        lines.append(f"| {name} | " + " | ".join(f"{value:.{digits}f}" for value in row) + " |")
    return "\n".join(lines) + "\n"
