"""Aggregate runs in MLflow: means and spreads of runs that differ by their seed alone."""

import os
from collections.abc import Iterator

from mbs_ray.evaluation.metric_names import GEOMEAN, WORST, MetricNames
from mbs_ray.evaluation.seed_spread import SPREAD
from mbs_ray.files import digest
from mbs_ray.report.run_results import read_sweep
from mbs_ray.report.seed_groups import SeedGroup, seed_groups
from mbs_ray.run.journal import Journal
from mbs_ray.run.sweep_folders import SweepFolders
from mbs_ray.tracking.mlflow_client import MlflowConnection
from mbs_ray.tracking.tracked_run import TrackedRun, aggregate_run

#: Folder of a sweep with the journals of its aggregate runs.
FOLDER = "aggregates"
#: What is a single run's alone.
_OWN_TAGS, _OWN_PARAMS = ("seed", "mbs.folder"), ("seed", "fingerprint", "begin", "resolved", "version")


def track_aggregates(
    folders: SweepFolders, connection: MlflowConnection, sweep: TrackedRun
) -> Iterator[tuple[str, bool]]:
    """Give MLflow a run for each group of seeds; yield (name, whether MLflow has taken everything).

    Made from the run directories. Safe to repeat: a group is found again by its key, and has new values once a further
    seed is finished. Nothing is done where the sweep's folder cannot be written: the journals lie there.
    """
    if not os.access(folders.sweep, os.W_OK):
        return
    for group in seed_groups(read_sweep(folders.sweep).runs):
        told = folders.run(group.runs[0].facts.label).tracking_identity()
        if told is None:
            continue
        key = digest(told["sweep"]["key"], *group.key)
        journal = Journal(folders.sweep / FOLDER / f"{key}.jsonl")
        journal.append_changed(_metrics(group))
        own = told["run"]
        run = aggregate_run(
            connection,
            sweep,
            key=key,
            name=f"{group.without_seed(own['name'])}, mean over seeds",
            params={name: value for name, value in own["params"].items() if name not in _OWN_PARAMS},
            tags={
                **{name: value for name, value in own["tags"].items() if name not in _OWN_TAGS},
                "aggregate": "seed",
                "seeds": ",".join(map(str, group.seeds)),
            },
            journal=journal,
        )
        run.note(_note(group))
        run.finish("FINISHED")
        yield run.name, run.sync()


def _metrics(group: SeedGroup) -> dict[str, float]:
    means = {name: one.mean for name, one in group.means.items()}
    spreads = {f"{SPREAD}/{name}": one.deviation for name, one in group.means.items() if one.deviation is not None}
    return {**means, **spreads, "seeds": float(len(group.runs))}


def _note(group: SeedGroup) -> str:
    """Say in Markdown of which runs these are the means, and what they lost."""
    seeds = ", ".join(map(str, group.seeds))
    lines = [
        f"Means over {len(group.runs)} runs that differ by their seed alone (seeds {seeds}); metrics {SPREAD}/… are "
        "their sample standard deviations."
    ]
    rows = {row: group.means.get(MetricNames().increase(row)) for row in (GEOMEAN, WORST)}
    said = [f"{row} {one.mean:.3f} {one.spread_text}".strip() for row, one in rows.items() if one is not None]
    if said:
        lines += ["", f"Perplexity over that of the dense model: {', '.join(said)}."]
    return "\n".join(lines)
