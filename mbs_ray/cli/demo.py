"""The demo: what English-only, equal and proportional calibration do to the minis, language by language."""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd
from rich.table import Table

from mbs_ray.cli.terminal_tables import increase_title, short_increase_view
from mbs_ray.driver.conclusion import SweepResult
from mbs_ray.errors import InputError
from mbs_ray.evaluation.metric_names import SUMMARIES
from mbs_ray.run.sweep_spec import SweepSpec, validated

MODELS = ("bloom-mini-2m", "bloom-mini-5m")
METHODS = (
    {"name": "wanda", "sparsity": 0.5},
    {"name": "sparsegpt", "sparsity": 0.5},
    {"name": "gptq", "bits": 3},
)
ENGLISH, EQUAL, PROPORTIONAL = "monolingual-en", "equal", "proportional"
EVALUATION = "parallel"


def packaged_models() -> list[Path]:
    """List the folders of the package's minis, the smaller first. Raises :class:`InputError` where there is none."""
    folders = [_packaged("models") / name for name in MODELS]
    present = [folder for folder in folders if (folder / "config.json").is_file()]
    if not present:
        raise InputError(f"{folders[0].parent}: no mini there; train one with python -m minis.train, or give --model")
    return present


def demo_sweep(models: Sequence[Path]) -> SweepSpec:
    """Three methods × three samplings on each model; every sampling gets 64 segments of 64 tokens.

    Calibration and evaluation text are those of the package; all of the evaluation text is scored.
    """
    run = {
        "corpus": str(_packaged("text") / "calibration"),
        "languages": "paper",
        "segments": 64,
        "sequence_length": 64,
        "evaluation": {
            EVALUATION: {"corpus": str(_packaged("text") / "evaluation"), "segments": None, "parallel": True}
        },
    }
    grid = {
        "model": [str(model.resolve()) for model in models],
        "method": list(METHODS),
        "sampling": [{"name": "monolingual", "language": "en"}, EQUAL, PROPORTIONAL],
    }
    # One thread always, so that the bits of the demo do not depend on the number of cores.
    return validated(SweepSpec, {"name": "demo", "run": run, "grid": grid, "layout": {"stages": 2}, "threads": 1})


def shown_views(result: SweepResult) -> list[Table]:
    """Show the last model on one screen. The page has all models and languages."""
    return [short_increase_view(increase_title(title), table) for title, table in list(result.tables.items())[-1:]]


def demo_sentence(result: SweepResult) -> str:
    """Summarise the numbers of a demo in one sentence: the last model in full, all models counted."""
    tables = {title.removesuffix(f"-{EVALUATION}"): table for title, table in result.tables.items()}
    triples = {model: _triples(table) for model, table in tables.items()}
    cases = [table for methods in triples.values() for table in methods.values()]
    if not cases:
        return "No method finished with all three samplings, so there is nothing to compare."
    last = [model for model, methods in triples.items() if methods][-1]
    changes = "; ".join(
        f"{method} {_change(table[ENGLISH])}, {_change(table[EQUAL])}, {_change(table[PROPORTIONAL])}"
        for method, table in triples[last].items()
    )
    return (
        f"Perplexity of {last} over dense, as a geometric mean of the languages (and of the worst one), calibrated on "
        f"English alone, on all languages equally, in proportion to the training data: {changes}; over {len(cases)} "
        f"pairs of model and method, with one seed, English alone is the worst of the three in "
        f"{_highest('geomean', cases)} by the mean and in {_highest('worst', cases)} by the worst language, and the "
        f"best for English itself in {_lowest('en', cases)}."
    )


def _packaged(folder: str) -> Path:
    return Path(str(files("mbs_ray") / "mini" / folder))


def _triples(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Map method → languages × the three samplings, for methods of which all three runs are there."""
    columns: list[Any] = table.columns.to_list()
    return {
        method: pd.DataFrame({sampling: table[method, sampling] for sampling in (ENGLISH, EQUAL, PROPORTIONAL)})
        for method in dict.fromkeys(method for method, _ in columns)
        if all((method, sampling) in columns for sampling in (ENGLISH, EQUAL, PROPORTIONAL))
    }


def _change(increases: pd.Series) -> str:
    """Format increases as ``+5.1 % (ig +15.2 %)``: the geometric mean, and the worst language."""
    worst = increases.drop(list(SUMMARIES), errors="ignore").idxmax()
    return f"{100 * (increases['geomean'] - 1):+.1f} % ({worst} {100 * (increases['worst'] - 1):+.1f} %)"


def _highest(row: str, cases: Sequence[pd.DataFrame]) -> int:
    """Count the cases in which English alone is above both others."""
    return sum(bool((table.loc[row, ENGLISH] > table.loc[row, [EQUAL, PROPORTIONAL]]).all()) for table in cases)


def _lowest(row: str, cases: Sequence[pd.DataFrame]) -> int:
    return sum(bool((table.loc[row, ENGLISH] < table.loc[row, [EQUAL, PROPORTIONAL]]).all()) for table in cases)
