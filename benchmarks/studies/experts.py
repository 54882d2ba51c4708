"""Starved experts of a small mixture: what samplings send them, what borrowing and further text change, five seeds."""

from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.studies.seeds import interval
from benchmarks.studies.study_table import increases, read, summaries
from mbs_ray.languages.facts import table_order
from mbs_ray.languages.sampling_registry import build_sampling
from mbs_ray.methods import build_method

_ENGLISH, _EQUAL = "monolingual-en", "equal"
_KEYS = ["method", "sampling", "expert_tokens", "seed"]


def runs(sweep: Path) -> pd.DataFrame:
    """A row per run: method, sampling, its text and expert_tokens, seed, experts that borrowed, and its folder."""
    rows = []
    for result in sorted(sweep.glob("runs/*/result.json")):
        spec, metrics = read(result.parent / "spec.json"), read(result)["metrics"]
        rows.append(
            {
                "method": build_method(spec["method"]).label,
                "sampling": build_sampling(spec["sampling"]).label,
                "expert_tokens": float(spec["expert_tokens"]),
                "segments": spec["segments"],
                "expert_segments": spec["expert_segments"],
                "seed": spec["seed"],
                "starved": metrics["experts/starved"],
                "folder": result.parent,
            }
        )
    return pd.DataFrame(rows)


def reached(sweep: Path) -> pd.DataFrame:
    """By sampling, over experts of all blocks and seeds: tokens of the least, a tenth and the median expert."""
    tokens: dict[str, list[float]] = {}
    for run in runs(sweep).drop_duplicates(["sampling", "seed"]).itertuples():
        table = pd.read_parquet(run.folder / "experts.parquet")
        tokens.setdefault(run.sampling, []).extend(table.groupby(["block", "expert"])["tokens"].sum())
    rows = {
        sampling: {
            "least": f"{min(own):.0f}",
            "first tenth": f"{np.quantile(own, 0.1):.0f}",
            "median": f"{np.median(own):.0f}",
            "most": f"{max(own):.0f}",
        }
        for sampling, own in tokens.items()
    }
    return pd.DataFrame(rows).T


def borrowing(sweep: Path) -> pd.DataFrame:
    """By method, sampling and expert_tokens: experts that borrowed, geometric mean of the increase, paired change."""
    frame = increases(sweep)
    logs = summaries(frame.assign(log=np.log(frame["increase"])).set_index([*_KEYS, "language"])["log"], _KEYS)
    starved = runs(sweep).groupby(_KEYS[:3])["starved"].mean()
    rows = {}
    for (method, sampling), own in logs.groupby(level=["method", "sampling"], sort=False):
        without = own.xs((method, sampling, 0.0), level=_KEYS[:3])
        for amount in sorted(own.index.get_level_values("expert_tokens").unique()):
            here = own.xs((method, sampling, amount), level=_KEYS[:3])
            paired = here - without
            changed = {} if amount == 0 else {f"{place}, change in %": interval(paired[place]) for place in paired}
            rows[method, sampling, f"{amount:g}"] = {
                "experts that borrow": f"{starved[method, sampling, amount]:.1f}",
                "increase": f"{np.exp(here['geomean'].mean()):.3f}",
                **changed,
            }
    return pd.DataFrame(rows).T.fillna("")


def further(sweep: Path) -> pd.DataFrame:
    """By method, sampling, segments and further ones: experts that borrowed, increase, paired change to the fewest."""
    frame = increases(sweep)
    keys = ["method", "sampling", "segments", "expert_segments", "seed"]
    logs = summaries(frame.assign(log=np.log(frame["increase"])).set_index([*keys, "language"])["log"], keys)
    starved = runs(sweep).groupby(keys[:4])["starved"].mean()
    rows = {}
    for key, own in logs.groupby(level=keys[:4]):
        method, sampling, segments, more = key
        base = logs.xs((method, sampling, 20, 0), level=keys[:4])
        paired = own.droplevel(keys[:4]) - base
        changed = (
            {f"{place}, change in %": interval(paired[place]) for place in paired}
            if (segments, more) != (20, 0)
            else {}
        )
        rows[method, sampling, f"{segments} + {more}"] = {
            "experts that borrow": f"{starved[key]:.1f}",
            "increase": f"{np.exp(own['geomean'].mean()):.3f}",
            **changed,
        }
    return pd.DataFrame(rows).T.fillna("")


def by_language(without: Path, sweep: Path, method: str) -> pd.DataFrame:
    """Increase of each language, mean over seeds: nothing borrowed, borrowed, borrowed with further segments."""
    bare, rich = increases(without), increases(sweep)
    bare = bare[bare["expert_tokens"] == 0].assign(what="nothing borrowed")
    rich = rich[rich["segments"] == 20]
    rich = rich.assign(what=rich["expert_segments"].map({0: "borrowed", 20: "20 further"}))
    frame = pd.concat([bare, rich])
    frame = frame[(frame["method"] == method) & frame["sampling"].isin([_ENGLISH, _EQUAL])]
    logs = np.log(frame["increase"]).groupby([frame["language"], frame["sampling"], frame["what"]]).mean()
    columns = [
        (sampling, what) for sampling in (_ENGLISH, _EQUAL) for what in ("nothing borrowed", "borrowed", "20 further")
    ]
    table = np.exp(logs).unstack(["sampling", "what"])[columns]
    return table.loc[list(table_order(table.index))].map("{:.3f}".format)


def payers(sweep: Path) -> dict[str, float]:
    """Do languages pay whose experts English starves? Correlation over languages, by method, without borrowing.

    Of the log increase under English alone less that under ``equal`` with how few tokens the experts of the language's
    tokens get: the mean over its tokens, in the equal sampling, of log2 of the expert's share of English over an even
    one.
    """
    of_runs = runs(sweep)
    equal = of_runs[(of_runs["sampling"] == _EQUAL)].drop_duplicates("seed")
    english = of_runs[(of_runs["sampling"] == _ENGLISH)].drop_duplicates("seed")
    served: dict[str, list[float]] = {}
    for run, other in zip(equal.itertuples(), english.itertuples(), strict=True):
        own, alone = (pd.read_parquet(one.folder / "experts.parquet") for one in (run, other))
        share = alone.groupby(["block", "expert"])["tokens"].sum()
        share = np.log2((share / share.groupby("block").transform("mean")).clip(lower=1 / 64))
        for language, tokens in own.groupby("language"):
            weights = tokens.set_index(["block", "expert"])["tokens"]
            served.setdefault(str(language), []).append(float((weights * share).sum() / weights.sum()))
    means = pd.Series({language: float(np.mean(values)) for language, values in served.items()})
    frame = increases(sweep)
    frame = frame[frame["expert_tokens"] == 0]
    logs = np.log(frame["increase"]).groupby([frame["method"], frame["sampling"], frame["language"]]).mean()
    found = {}
    for method in frame["method"].unique():
        lost = logs[method, _ENGLISH] - logs[method, _EQUAL]
        both = pd.DataFrame({"lost": lost, "served": means}).drop(index="en").dropna()
        found[method] = float(both["lost"].corr(both["served"], method="spearman"))
    return found
