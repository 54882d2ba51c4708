"""Write the table and the heatmap of docs/results/demo.md from a finished sweep.

    python -m handbook.demo_results OUT/demo/increase-bloom-mini-5m-parallel.csv

The sweep is jobs/sweeps/demo.yaml with ``seed: [0, 1, 2, 3, 4]`` in its grid.
"""

import re
import sys
from pathlib import Path

import pandas as pd

from mbs_ray.report.figures.canvas import save_figure
from mbs_ray.report.figures.increase_heatmap import increase_heatmap

RESULTS = Path(__file__).parents[1] / "docs" / "results"
_METHODS = {"wanda-50": "wanda 50 %", "sparsegpt-50": "sparsegpt 50 %", "gptq-3bit": "gptq 3 bit"}
_SAMPLINGS = {"monolingual-en": "English", "equal": "equal", "proportional": "proportional"}
_RUN = re.compile(rf"(?:.*-)?({'|'.join(_METHODS)})-({'|'.join(_SAMPLINGS)})-seed\d+")


def over_seeds(increases: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return mean and half the range over seeds, languages × (method, sampling), of a table languages × runs."""
    runs = {name: match.groups() for name in increases.columns if (match := _RUN.fullmatch(name))}
    own = increases[list(runs)]
    own.columns = pd.MultiIndex.from_tuples(list(runs.values()))
    groups = own.T.groupby(level=[0, 1], sort=False)
    return groups.mean().T, ((groups.max() - groups.min()) / 2).T


def table(mean: pd.DataFrame, half_range: pd.DataFrame) -> str:
    """Write both as the page's table in Markdown."""
    heads = [
        (f"{_METHODS[method]}: " if sampling == next(iter(_SAMPLINGS)) else "") + _SAMPLINGS[sampling]
        for method, sampling in mean.columns
    ]
    lines = [f"| language | {' | '.join(heads)} |", "|---|" + "---:|" * len(heads)]
    for language in mean.index:
        cells = (f"{m:.2f} ± {h:.2f}" for m, h in zip(mean.loc[language], half_range.loc[language], strict=True))
        lines.append(f"| {language} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(increases: Path) -> None:
    mean, half_range = over_seeds(pd.read_csv(increases, index_col="language"))
    page = RESULTS / "demo.md"
    before, rest = page.read_text(encoding="utf-8").split("| language |", 1)
    after = rest[rest.index("\n\n") :]
    page.write_text(before + table(mean, half_range) + after, encoding="utf-8")
    figure = increase_heatmap(mean, "Perplexity increase over the dense model: bloom-mini-5m, 5 seeds")
    save_figure(figure, RESULTS / "images" / "demo.png")
    print(f"written: {page} and images/demo.png beside it")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
