"""Calibration in one language: what it does to all the others, and whether similar languages help each other."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from benchmarks.studies.pictures import small_multiples
from benchmarks.studies.results import increases
from mbs_ray.languages import table_order


def _matrix(sweep: Path, model: str, method: str) -> pd.DataFrame:
    """Increase: evaluated language × language of calibration."""
    frame = increases(sweep)
    own = frame[(frame["model"] == model) & (frame["method"] == method)].copy()
    own["calibrated"] = [options["language"] for options in own["options"]]
    order = list(table_order(own["language"].unique()))
    return own.pivot(index="language", columns="calibrated", values="increase").loc[order, order]


def groups(sweep: Path) -> list[tuple[str, str]]:
    frame = increases(sweep)
    return list(dict.fromkeys(zip(frame["model"], frame["method"], strict=True)))


def _off_diagonal(matrix: pd.DataFrame) -> np.ndarray:
    return matrix.to_numpy()[~np.eye(len(matrix), dtype=bool)]


def _excess(matrix: pd.DataFrame) -> pd.DataFrame:
    """Log increase, less the mean of its row: a language's own resistance says nothing about its neighbours."""
    logs = np.log(matrix)
    return logs.sub(logs.mean(axis=1), axis=0)


def table(sweep: Path, similarities: dict[str, dict[str, pd.DataFrame]]) -> pd.DataFrame:
    """Increase with the language's own text, with the others', and Spearman's ρ of the excess with similarity.

    ``similarities``: by model, by kind, languages × languages.
    """
    rows = {}
    for model, method in groups(sweep):
        matrix = _matrix(sweep, model, method)
        row = {
            "own text": f"{np.exp(np.log(np.diag(matrix)).mean()):.3f}",
            "other languages": f"{np.exp(np.log(_off_diagonal(matrix)).mean()):.3f}",
            "worst": f"{matrix.to_numpy().max():.2f}",
        }
        for kind, similarity in similarities[model].items():
            aligned = similarity.loc[matrix.index, matrix.columns]
            rank = spearmanr(_off_diagonal(aligned), _off_diagonal(_excess(matrix)))
            row[f"ρ, {kind}"] = f"{rank.statistic:+.2f} (p {rank.pvalue:.1g})"
        rows[model, method] = row
    return pd.DataFrame(rows).T


def figure(sweep: Path, model: str) -> Figure:
    methods = [method for one, method in groups(sweep) if one == model]
    title = f"{model}: calibrated in one language (columns), log perplexity ÷ dense (rows)"
    canvas, axes = small_multiples(len(methods), title, "language scored", height=4.6)
    for method, panel in zip(methods, axes, strict=True):
        matrix = np.log(_matrix(sweep, model, method))
        image = panel.imshow(matrix, cmap="YlGnBu", vmin=0, vmax=float(np.nanquantile(matrix, 0.98)))
        panel.set_xticks(range(len(matrix)), matrix.columns, rotation=90, fontsize=7)
        panel.set_yticks(range(len(matrix)), matrix.index, fontsize=7)
        panel.set_title(method, fontsize=10)
        canvas.colorbar(image, ax=panel, fraction=0.046, pad=0.03)
    return canvas
