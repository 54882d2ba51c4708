"""The results of a run, from its directory to MLflow, in a live sweep as well as by ``mbs track``."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from mbs_ray.compression.block_report import read_block_reports
from mbs_ray.evaluation.intervals import interval_text
from mbs_ray.evaluation.metric_names import (
    GEOMEAN,
    INCREASE,
    PERPLEXITY,
    UNKNOWN_SHARE,
    WORST,
    MetricNames,
    group_sentence,
)
from mbs_ray.evaluation.perplexity import stored_interval
from mbs_ray.evaluation.text_warnings import unknown_warning
from mbs_ray.files import appearing
from mbs_ray.model.manifest import MANIFEST
from mbs_ray.report.figures.canvas import save_figure
from mbs_ray.report.figures.experts_heatmap import experts_heatmap
from mbs_ray.report.figures.layer_error_heatmap import layer_error_heatmap
from mbs_ray.run.directory import EXPERTS, RunDirectory
from mbs_ray.run.journal import Journal
from mbs_ray.run.run_facts import RunFacts
from mbs_ray.tracking.tracked_run import TrackedRun


def journal_blocks(directory: RunDirectory, over: bool) -> None:
    """Journal the reports of finished blocks, or of all where the run is ``over``."""
    # Without this part the block is being worked on, or its stage was killed right after writing it.
    reports = [one for one in read_block_reports(directory.blocks) if over or "propagate" in one.seconds]
    values = {
        one.block: {f"block/{name}": value for name, value in one.metrics().items()}
        | {f"layer_error/{language}": value for language, value in one.language_errors().items()}
        | {f"block/{name}": value for name, value in one.expert_counts().items()}
        for one in reports
    }
    Journal(directory.journal).append_missing(values)


def track_results(directory: RunDirectory, metrics: Mapping[str, float], tracked: TrackedRun) -> None:
    """Journal all that a finished run measured and its journal lacks, and log to MLflow what else it wrote.

    The run must be claimed (:meth:`RunDirectory.claim`). Safe to repeat: nothing is doubled. Where the text of an
    evaluation set has changed since, ``metrics`` follow those of the old text, which stay in their history.
    """
    facts = directory.facts()
    assert facts is not None
    journal_blocks(directory, over=True)
    Journal(directory.journal).append_changed(metrics)
    tracked.note(_note(facts, directory, metrics))
    tracked.artifact(_linears_table(directory), "reports")
    _track_layer_errors(directory, tracked)
    _track_experts(directory, tracked)
    if not directory.checkpoint.is_dir():
        return  # its metrics are all that was kept
    tracked.artifact(directory.checkpoint / "config.json", "checkpoint")
    tracked.tag("mbs.checkpoint", str(directory.checkpoint))
    manifest = directory.checkpoint / MANIFEST
    if manifest.is_file():  # an earlier version wrote none
        tracked.artifact(manifest, "checkpoint")
        tracked.tag("mbs.checkpoint_sha256", hashlib.sha256(manifest.read_bytes()).hexdigest())


def _note(facts: RunFacts, directory: RunDirectory, metrics: Mapping[str, float]) -> str:
    """Say in Markdown what was done and what it cost, per language of the first evaluation set."""
    allocation, weights, names = directory.allocation(), directory.weights(), MetricNames()
    taken = {code: f"{100 * one:.3g} %" for code, one in weights.items()} if weights else allocation
    perplexities, increases = names.rows(PERPLEXITY, metrics), names.rows(INCREASE, metrics)
    lines = [
        f"**{facts.method}** on {facts.model}, calibration **{facts.sampling}**: "
        f"{facts.segments} segments of {facts.sequence_length} tokens, seed {facts.seed}."
    ]
    if weights:
        lines.append(
            "Statistics of the dense model, equally many segments of each language, weighed as the table says."
        )
    if perplexities:
        lines += [
            f"On {facts.evaluation[0]}, perplexity over that of the dense model is "
            f"**{increases[GEOMEAN]:.3f}** (geometric mean of the languages), "
            f"{increases[WORST]:.3f} in the worst.",
            *group_sentence(increases),
            "",
            f"| language | {'weight' if weights else 'segments'} | perplexity | over dense | 95 % interval |",
            "|---|---:|---:|---:|---:|",
        ]
        # Not as the metrics are ordered: those of a replay come from a file, by name.
        lines += [
            f"| {language} | {taken.get(language, 0)} | {perplexities[language]:.2f} | {increases[language]:.3f} "
            f"| {interval_text(stored_interval(metrics, names, INCREASE, language))} |"
            for language in facts.languages
            if language in perplexities
        ]
    for name, own in MetricNames.by_set(facts.evaluation).items():
        if said := unknown_warning(own.rows(UNKNOWN_SHARE, metrics)):
            lines += ["", f"On {name}, {said}."]
    return "\n".join(lines)


def _linears_table(directory: RunDirectory) -> Path:
    """Write the block reports as one parquet file, a row per linear."""
    rows = [
        {"block": report.block, **vars(linear)}
        for report in read_block_reports(directory.blocks)
        for linear in report.linears
    ]
    return _table(rows, directory.path / "linears.parquet")


def _track_layer_errors(directory: RunDirectory, tracked: TrackedRun) -> None:
    """Log table and figure of what each language lost in each block, where that was measured."""
    reports = read_block_reports(directory.blocks)
    rows = [
        {"block": report.block, **vars(one), "relative": one.relative}
        for report in reports
        for one in report.layer_error
    ]
    if not rows:
        return
    tracked.artifact(_table(rows, directory.path / "layer_errors.parquet"), "reports")
    path = directory.figures / "layer_error.png"
    if not path.is_file():
        errors = pd.DataFrame({report.block: report.language_errors() for report in reports})
        save_figure(layer_error_heatmap(errors, f"Relative layer error: {tracked.name}"), path)
    tracked.artifact(path, "figures")


def _track_experts(directory: RunDirectory, tracked: TrackedRun) -> None:
    """Log table and figure of the tokens that came to each expert, for a mixture."""
    path = write_experts(directory)
    if path is None:
        return
    tracked.artifact(path, "reports")
    figure = directory.figures / "experts.png"
    if not figure.is_file():
        save_figure(experts_heatmap(pd.read_parquet(path), f"Tokens by expert: {tracked.name}"), figure)
    tracked.artifact(figure, "figures")


def write_experts(directory: RunDirectory) -> Path | None:
    """Write the tokens of each expert as one parquet file, a row for each language; None without any expert."""
    rows = [
        {
            "block": report.block,
            "mixture": one.mixture,
            "expert": expert,
            "language": language,
            "tokens": tokens,
            "borrowed": one.borrowed.get(expert, 0.0),
        }
        for report in read_block_reports(directory.blocks)
        for one in report.mixtures
        for language, counts in zip(one.languages, one.tokens, strict=True)
        for expert, tokens in enumerate(counts)
    ]
    return _table(rows, directory.path / EXPERTS) if rows else None


def _table(rows: list[dict[str, Any]], path: Path) -> Path:
    """Write rows as a parquet file, whole or not at all.

    A file that is there is kept: a finished run's blocks do not change, and its folder may be somebody else's.
    """
    if not path.is_file():
        with appearing(path) as unfinished:
            pd.DataFrame(rows).to_parquet(unfinished, index=False)
    return path
