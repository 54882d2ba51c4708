"""Calibration in one language: what it does to all the others, and whether similar languages help each other."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.stats import rankdata

from benchmarks.studies.panels import small_multiples
from benchmarks.studies.study_table import increases
from mbs_ray.languages.facts import table_order

_ORDERS = 9999


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
    """Log increase, less its row's mean over the other languages: own resistance says nothing about neighbours."""
    logs = np.log(matrix.where(~np.eye(len(matrix), dtype=bool)))
    return logs.sub(logs.mean(axis=1), axis=0)


def correlation(similarity: pd.DataFrame, excess: pd.DataFrame) -> tuple[float, float]:
    """Spearman's ρ over the ordered pairs of different languages, and its p by Mantel's test, two-sided.

    A language is in many pairs, so the pairs are not independent: p is the part of random orders of the languages in
    the similarities whose ρ is as far from 0.
    """
    away = ~np.eye(len(excess), dtype=bool)
    ranks, expected = np.zeros(away.shape), rankdata(excess.to_numpy()[away])
    ranks[away] = rankdata(similarity.to_numpy()[away])
    generator = np.random.default_rng(0)
    orders = [np.arange(len(ranks)), *(generator.permutation(len(ranks)) for _ in range(_ORDERS))]
    found = np.array([np.corrcoef(ranks[np.ix_(order, order)][away], expected)[0, 1] for order in orders])
    return float(found[0]), float(np.mean(np.abs(found) >= abs(found[0]) - 1e-12))


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
            rho, p = correlation(aligned, _excess(matrix))
            row[f"ρ, {kind}"] = f"{rho:+.2f} (p {p:.4f})"
        rows[model, method] = row
    return pd.DataFrame(rows).T


def figure(sweep: Path, model: str) -> Figure:
    methods = [method for one, method in groups(sweep) if one == model]
    title = f"{model}: log of perplexity ÷ dense, calibrated on one language (columns)"
    canvas, axes = small_multiples(len(methods), title, "language scored", height=4.5)
    for method, panel in zip(methods, axes, strict=True):
        matrix = np.log(_matrix(sweep, model, method))
        image = panel.imshow(matrix, cmap="YlGnBu", vmin=0, vmax=float(np.nanquantile(matrix, 0.98)))
        panel.set_xticks(range(len(matrix)), matrix.columns, rotation=90, fontsize=7)
        panel.set_yticks(range(len(matrix)), matrix.index if panel is axes[0] else [], fontsize=7)
        panel.set_title(method, fontsize=10)
        canvas.colorbar(image, ax=panel, location="bottom", shrink=0.9, extend="max")
    return canvas
