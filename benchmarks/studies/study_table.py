"""What the runs of a finished sweep measured, as one table."""

import json
from pathlib import Path

import pandas as pd

from mbs_ray.evaluation.metric_names import INCREASE, SUMMARIES, MetricNames
from mbs_ray.languages.distribution import model_distribution
from mbs_ray.languages.sampling_registry import build_sampling
from mbs_ray.methods import build_method
from mbs_ray.run.modes import PROPAGATED, UNIFORM, Budget, DenseFit, DenseStatistics


def increases(sweep: Path) -> pd.DataFrame:
    """A row per run and language: model, method, sampling, fields of the run, its segments of the language, increase.

    ``increase`` is perplexity over that of the dense model on the same tokens.
    """
    rows = []
    for result in sorted(sweep.glob("runs/*/result.json")):
        run = result.parent
        spec, allocation = read(run / "spec.json"), read(run / "allocation.json")
        told = {
            "model": Path(spec["model"]).name,
            "method": build_method(spec["method"]).label,
            "sampling": build_sampling(spec["sampling"]).label,
            "segments": spec["segments"],
            "seed": spec["seed"],
            "calibration": read(run / "signature.json")["calibration"],
            "options": spec["sampling"],
            "statistics": _statistics(spec),
            "fit": _fit(spec),
            "budget": _budget(spec),
            "expert_tokens": float(spec.get("expert_tokens", 0)),
            "expert_segments": spec.get("expert_segments", 0),
        }
        for language, value in MetricNames().rows(INCREASE, read(result)["metrics"]).items():
            if language not in SUMMARIES:
                rows.append({**told, "language": language, "own": allocation.get(language, 0), "increase": value})
    return pd.DataFrame(rows)


def _statistics(spec: dict) -> str:
    dense = spec.get("statistics", PROPAGATED)  # runs of earlier versions say nothing
    return PROPAGATED if dense == PROPAGATED else DenseStatistics(**dense).label


def _fit(spec: dict) -> str:
    dense = spec.get("fit_to", PROPAGATED)
    return PROPAGATED if dense == PROPAGATED else DenseFit(**dense).label


def _budget(spec: dict) -> str:
    dealt = spec.get("budget", UNIFORM)
    return UNIFORM if dealt == UNIFORM else Budget(**dealt).label


def summaries(logs: pd.Series, keys: list[str]) -> pd.DataFrame:
    """Of log increases by ``keys`` and language: their mean over the languages, the largest, and English's."""
    runs = logs.groupby(level=keys, sort=False)
    return pd.DataFrame({"geomean": runs.mean(), "worst": runs.max(), "en": logs.xs("en", level="language")})


def shares(sweep: Path) -> dict[str, pd.Series]:
    """By model of a sweep: language → share of its training data among the languages of the sweep."""
    specs = [read(path) for path in sorted(sweep.glob("runs/*/spec.json"))]
    table = increases(sweep)
    found = {}
    for spec in specs:
        name = Path(spec["model"]).name
        codes = table[table["model"] == name]["language"].unique()
        found[name] = pd.Series(model_distribution(spec["model"]).shares(list(codes)))
    return found


def segment_file(folder: Path, fingerprint: str) -> Path:
    return folder / f"{fingerprint[:16]}.parquet"


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))
