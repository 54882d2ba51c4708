"""The demo: what English-only, equal and proportional calibration do to two minis, language by language."""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import pandas as pd
from rich.console import Console

from mbs_ray.errors import InputError
from mbs_ray.progress import Progress
from mbs_ray.specs import SweepSpec, validated
from mbs_ray.sweep import SweepResult, conduct

MODELS = ("bloom-mini-2m", "bloom-mini-5m")
METHODS = (
    {"name": "wanda", "sparsity": 0.5},
    {"name": "sparsegpt", "sparsity": 0.5},
    {"name": "gptq", "bits": 3},
)
ENGLISH, EQUAL, PROPORTIONAL = "monolingual-en", "equal", "proportional"
EVALUATION = "parallel"


def packaged_models() -> list[Path]:
    """Folders of the two minis, the smaller first. Raises :class:`InputError` where they are not installed."""
    folders = [_packaged("models") / name for name in MODELS]
    for folder in folders:
        if not (folder / "config.json").is_file():
            raise InputError(f"{folder}: no model there; train it with python -m mbs_ray.mini.train, or give --model")
    return folders


def demo_sweep(models: Sequence[Path]) -> SweepSpec:
    """Three methods × three samplings on each model; every sampling gets 64 segments of 64 tokens.

    Calibration and evaluation text are those of the package; all of the evaluation text is scored.
    """
    run = {
        "corpus": str(_packaged("text") / "calibration"),
        "languages": "paper",
        "segments": 64,
        "sequence_length": 64,
        "evaluation": {EVALUATION: {"corpus": str(_packaged("text") / "evaluation"), "segments": None}},
    }
    grid = {
        "model": [str(model.resolve()) for model in models],
        "method": list(METHODS),
        "sampling": [{"name": "monolingual", "language": "en"}, EQUAL, PROPORTIONAL],
    }
    # One thread always, so that the bits of the demo do not depend on the number of cores.
    return validated(SweepSpec, {"name": "demo", "run": run, "grid": grid, "stages": 2, "threads": 1})


def run_demo(out: Path, address: str | None, console: Console, models: Sequence[Path] | None = None) -> SweepResult:
    """Conduct the demo's sweep, or go on with it. ``models`` are those of the package unless given."""
    return conduct(demo_sweep(models or packaged_models()), out, address, Progress(console))


def conclusion(result: SweepResult) -> str:
    """What the numbers of a demo say, in one sentence: the last model in full, all models counted.

    Raises :class:`InputError` where no method finished with all three samplings.
    """
    tables = {model: result.tables[f"{model}-{EVALUATION}"] for model in result.dense}
    triples = {model: complete for model, table in tables.items() if (complete := _triples(model, table))}
    if not triples:
        raise InputError("no method finished with all three samplings, so there is nothing to compare")
    last = list(triples)[-1]
    parts = [
        f"{method} multiplies perplexity by {_increase(table[ENGLISH])} when calibrated on English alone, "
        f"{_increase(table[EQUAL])} on all languages equally, {_increase(table[PROPORTIONAL])} in proportion "
        "to the training data"
        for method, table in triples[last].items()
    ]
    cases = [table for methods in triples.values() for table in methods.values()]
    return (
        f"{last}, geometric mean over {len(_languages(tables[last]))} languages (and the worst of them), one seed: "
        f"{'; '.join(parts)}; "
        f"English alone is the worst choice of the three in {_worst('geomean', cases)} of {len(cases)} cases "
        f"by the mean, in {_worst('worst', cases)} by the worst language, "
        f"and the best for English itself in {sum(bool(table.loc['en'].idxmin() == ENGLISH) for table in cases)}."
    )


def _packaged(folder: str) -> Path:
    return Path(str(files("mbs_ray") / "mini" / folder))


def _triples(model: str, table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Method → languages × the three samplings, for methods of which all three runs are there."""
    samplings = (ENGLISH, EQUAL, PROPORTIONAL)
    methods = [column.removesuffix(f"-{ENGLISH}") for column in table.columns if column.endswith(f"-{ENGLISH}")]
    return {
        method.removeprefix(f"{model}-"): pd.DataFrame({s: table[f"{method}-{s}"] for s in samplings})
        for method in methods
        if all(f"{method}-{sampling}" in table.columns for sampling in samplings)
    }


def _languages(table: pd.DataFrame) -> pd.Index:
    return table.index.drop(["geomean", "worst"])


def _increase(column: pd.Series) -> str:
    worst = column[_languages(column.to_frame())].idxmax()
    return f"{column['geomean']:.2f} ({worst} {column['worst']:.2f})"


def _worst(row: str, cases: Sequence[pd.DataFrame]) -> int:
    return sum(bool(table.loc[row].idxmax() == ENGLISH) for table in cases)
