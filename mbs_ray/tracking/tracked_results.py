"""What a run measured, from its directory to MLflow: in a live sweep and by ``mbs track`` alike."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from mbs_ray.compression.block_report import read_block_reports
from mbs_ray.evaluation.intervals import interval_text
from mbs_ray.evaluation.perplexity import stored_interval
from mbs_ray.evaluation.text_warnings import stored_unknown, unknown_warning
from mbs_ray.model.manifest import MANIFEST
from mbs_ray.report.figures.canvas import save_figure
from mbs_ray.report.figures.layer_error_heatmap import layer_error_heatmap
from mbs_ray.run.directory import RunDirectory
from mbs_ray.run.journal import Journal
from mbs_ray.tracking.tracked_run import TrackedRun


def journal_blocks(directory: RunDirectory, over: bool) -> None:
    """Journal the reports of blocks that are through, or of all where the run is ``over``."""
    # Without this part the block is being worked on, or its stage was killed right after writing it.
    reports = [one for one in read_block_reports(directory.blocks) if over or "propagate" in one.seconds]
    values = {
        one.block: {f"block/{name}": value for name, value in one.metrics().items()}
        | {f"layer_error/{language}": value for language, value in one.language_errors().items()}
        for one in reports
    }
    Journal(directory.journal).append_missing(values)


def track_results(directory: RunDirectory, metrics: Mapping[str, float], tracked: TrackedRun) -> None:
    """Journal all that a finished run measured and its journal lacks, and give MLflow what else it left.

    The run must have its identity in MLflow (:meth:`RunDirectory.keep_tracking_identity`). Safe to repeat: nothing is
    doubled. Where the text of an evaluation set became another since, ``metrics`` follow those of the old text, which
    stay in their history.
    """
    told = directory.tracking_identity()
    assert told is not None
    journal_blocks(directory, over=True)
    Journal(directory.journal).append_changed(metrics)
    tracked.note(_note(told["run"], directory, metrics))
    tracked.artifact(_linears_table(directory), "reports")
    _track_layer_errors(directory, told["run"]["name"], tracked)
    if not directory.checkpoint.is_dir():
        return  # its metrics are all that was kept
    tracked.artifact(directory.checkpoint / "config.json", "checkpoint")
    tracked.tag("mbs.checkpoint", str(directory.checkpoint))
    manifest = directory.checkpoint / MANIFEST
    if manifest.is_file():  # an earlier version wrote none
        tracked.artifact(manifest, "checkpoint")
        tracked.tag("mbs.checkpoint_sha256", hashlib.sha256(manifest.read_bytes()).hexdigest())


def _note(told: Mapping[str, Any], directory: RunDirectory, metrics: Mapping[str, float]) -> str:
    """What was done and what it cost, per language, in Markdown."""
    params, tags = told["params"], told["tags"]
    allocation, weights = directory.allocation(), directory.weights()
    segments = sum(allocation.values()) if weights else params["segments"]
    taken = {code: f"{100 * one:.3g} %" for code, one in weights.items()} if weights else allocation
    languages = [key.removeprefix("ppl/") for key in metrics if key.startswith("ppl/")]
    lines = [
        f"**{tags['method']}** on {tags['model']}, calibration **{tags['sampling']}**: "
        f"{segments} segments of {params['sequence_length']} tokens, seed {tags['seed']}."
    ]
    if weights:
        lines.append(
            "Statistics of the dense model, equally many segments of each language, weighed as the table says."
        )
    if languages:
        lines += [
            f"On {params['evaluation'].split(',')[0]}, perplexity over that of the dense model is "
            f"**{metrics['ppl_increase/geomean']:.3f}** (geometric mean of the languages), "
            f"{metrics['ppl_increase/worst']:.3f} in the worst.",
            "",
            f"| language | {'weight' if weights else 'segments'} | perplexity | over dense | 95 % interval |",
            "|---|---:|---:|---:|---:|",
        ]
        lines += [
            f"| {language} | {taken.get(language, 0)} | {metrics[f'ppl/{language}']:.2f} "
            f"| {metrics[f'ppl_increase/{language}']:.3f} "
            f"| {interval_text(stored_interval(metrics, f'ppl_increase/{language}'))} |"
            for language in languages
        ]
    sets = params["evaluation"].split(",") if languages else []
    for position, name in enumerate(sets):
        if said := unknown_warning(stored_unknown(metrics, f"_{name}" if position else "")):
            lines += ["", f"On {name}, {said}."]
    return "\n".join(lines)


def _linears_table(directory: RunDirectory) -> Path:
    """Block reports as one parquet file, a row per linear."""
    rows = [
        {"block": report.block, **vars(linear)}
        for report in read_block_reports(directory.blocks)
        for linear in report.linears
    ]
    return _table(rows, directory.path / "linears.parquet")


def _track_layer_errors(directory: RunDirectory, name: str, tracked: TrackedRun) -> None:
    """Table and figure of what each language lost in each block, where that was measured."""
    reports = read_block_reports(directory.blocks)
    rows = [
        {"block": report.block, **vars(one), "relative": one.relative}
        for report in reports
        for one in report.layer_error
    ]
    if not rows:
        return
    tracked.artifact(_table(rows, directory.path / "layer_errors.parquet"), "reports")
    path = directory.path / "figures" / "layer_error.png"
    if not path.is_file():
        errors = pd.DataFrame({report.block: report.language_errors() for report in reports})
        save_figure(layer_error_heatmap(errors, f"Relative layer error: {name}"), path)
    tracked.artifact(path, "figures")


def _table(rows: list[dict[str, Any]], path: Path) -> Path:
    """Rows as a parquet file, whole or not at all. One that is there is kept: a finished run's blocks do not change,
    and its folder may be somebody else's.
    """
    if not path.is_file():
        unfinished = path.with_name(f".{path.name}.{os.getpid()}")
        pd.DataFrame(rows).to_parquet(unfinished, index=False)
        unfinished.replace(path)
    return path
