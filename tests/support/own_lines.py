"""Which lines a command prints of its own accord: whatever else stands on a terminal is another library's."""

import re

#: Lines of a small `mbs compress` where there is no terminal; tables are known by their frames.
OWN = tuple(
    re.compile(pattern)
    for pattern in (
        r"(reading|drawing) .+: \d+ %",
        r"drawing evaluation text \S+",
        r"allocation \S+ \(\d+ segments\): .+",
        r"layout: \d+ × \d+ \(stages × replicas\), \d+ thread\(s\) each, on \w+",
        r"plan: .+",
        r"host memory: a stage may use .+",
        r"\S+: \d+ %, stage \d+, .+",
        r"\S+: done in \d+ s \(\d+ of \d+\)",
        r"stage \d+: computing \d+ %, .+",
        r"all runs are finished; nothing to compute",
        r" *perplexity increase:( \S+)? *",
        r" +\S+-evaluation +",  # the rest of that title above a narrow table
        r"[┏┡└┃│].*",
        r"written: /.+",
        r"tracking: sqlite:////.+   \(mbs ui .+\)",
    )
)


def foreign_lines(text: str) -> list[str]:
    """Lines of a captured output that are not of these kinds."""
    return [line for line in text.splitlines() if line.strip() and not any(one.fullmatch(line) for one in OWN)]
