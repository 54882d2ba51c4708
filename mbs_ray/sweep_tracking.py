"""What MLflow is told of a sweep: parent and runs, block reports as they come, results."""

import hashlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd
import ray

from mbs_ray import __version__
from mbs_ray.evaluation.perplexity import stored_interval
from mbs_ray.journal import Journal
from mbs_ray.model.manifest import MANIFEST
from mbs_ray.places import Places
from mbs_ray.plots import layer_error_heatmap, save_figure
from mbs_ray.prepare import PreparedRun
from mbs_ray.report import read_reports
from mbs_ray.run_directory import RunDirectory, digest, write_json
from mbs_ray.tables import interval_text
from mbs_ray.tracked_data import dataset_inputs
from mbs_ray.tracking import TrackedRun, Tracking
from mbs_ray.ui_views import OTHER_SAMPLING, RUN_COLOUR_TAG, SAMPLING_COLOURS, publish_view

if TYPE_CHECKING:
    from mlflow import MlflowClient

Status = Literal["FINISHED", "FAILED", "KILLED"]


class SweepTracking:
    """The parent run of a sweep and its open children, by label."""

    def __init__(self, tracking: Tracking, places: Places, params: Mapping[str, Any]) -> None:
        self._tracking, self._places = tracking, places
        self._told: dict[str, Any] = {
            "key": digest(str(places.sweep)),
            "name": places.name,
            "params": {**params, "mbs_ray": __version__},
            "tags": {"mbs.folder": str(places.sweep)},
        }
        self.parent = tracking.sweep(**self._told)
        self._open: dict[str, tuple[PreparedRun, TrackedRun]] = {}
        self._viewed: set[str] = set()

    def begin(self, run: PreparedRun, signature: Mapping[str, Any], resolved: Mapping[str, Any]) -> None:
        """Open, or find again, the MLflow run of a run that is about to be worked on."""
        directory = self._places.run(run.label)
        spec = run.spec.model_dump(mode="json")
        told: dict[str, Any] = {
            "key": digest(str(directory.path), str(sorted(signature.items()))),
            "name": _shown_name(run),
            "params": {
                **{field: value for field, value in spec.items() if field not in ("languages", "evaluation")},
                "languages": ",".join(run.languages),
                "evaluation": ",".join(run.evaluation),
                "fingerprint": {"model": run.model.fingerprint, "calibration": run.calibration.fingerprint},
                "resolved": resolved,
                "version": {"mbs_ray": __version__, "ray": ray.__version__},
            },
            "tags": {
                "model": run.model.name,
                "method": run.spec.method.label,
                "sampling": run.spec.sampling.label,
                "seed": str(run.spec.seed),
                "mbs.folder": str(directory.path),
                RUN_COLOUR_TAG: SAMPLING_COLOURS.get(run.spec.sampling.name, OTHER_SAMPLING),
            },
        }
        directory.keep_told({"experiment": self._places.name, "sweep": self._told, "run": told})
        tracked = self._tracking.run(self.parent, **told, journal=Journal(directory.journal))
        self._open[run.label] = run, tracked
        inputs = dataset_inputs(run)
        tracked.enqueue(lambda client: client.log_inputs(tracked.run_id, inputs))
        if run.model.name not in self._viewed:
            self._viewed.add(run.model.name)
            scored = run.languages if run.evaluation else ()
            tracked.enqueue(partial(self._publish_view, run.model.name, scored))
        for name, content in (("allocation.json", run.allocation), ("spec.json", spec)):
            write_json(directory.path / name, content)
            tracked.artifact(directory.path / name)

    def _publish_view(self, model: str, languages: Sequence[str], client: "MlflowClient") -> None:
        publish_view(self._tracking.experiment_id, model, languages, client)

    def sync(self) -> None:
        """Journal the blocks that were finished since, and bring MLflow up to date."""
        for label, (_, tracked) in self._open.items():
            journal_blocks(self._places.run(label), over=False)
            tracked.sync()

    def finish(self, label: str, metrics: Mapping[str, float]) -> bool:
        """Deliver a finished run; False when MLflow has not taken all of it yet."""
        directory = self._places.run(label)
        journal_result(directory, metrics)
        run, tracked = self._open.pop(label)
        tracked.note(_note(run, metrics))
        tracked.artifact(_linears_table(directory), "reports")
        _track_layer_errors(run, directory, tracked)
        tracked.artifact(directory.checkpoint / "config.json", "checkpoint")
        tracked.tag("mbs.checkpoint", str(directory.checkpoint))
        manifest = directory.checkpoint / MANIFEST
        if manifest.is_file():  # an earlier version wrote none
            tracked.artifact(manifest, "checkpoint")
            tracked.tag("mbs.checkpoint_sha256", hashlib.sha256(manifest.read_bytes()).hexdigest())
        tracked.finish("FINISHED")
        return tracked.sync()

    def fail(self, label: str, reason: str) -> None:
        _, tracked = self._open.pop(label)
        tracked.note(f"failed: {reason}")
        tracked.finish("FAILED")

    def close(self, status: Status) -> bool:
        """End what is still open; False when MLflow has not taken everything yet."""
        for _, tracked in self._open.values():
            tracked.finish(status)
        self.parent.finish(status)
        return self.parent.sync()


def _shown_name(run: PreparedRun) -> str:
    """The label with the model's name at its end: MLflow cuts long names short there."""
    rest = run.label.removeprefix(f"{run.model.name}-")
    return run.label if rest == run.label else f"{rest} ({run.model.name})"


def _note(run: PreparedRun, metrics: Mapping[str, float]) -> str:
    """What was done and what it cost, per language, in Markdown."""
    spec = run.spec
    languages = [key.removeprefix("ppl/") for key in metrics if key.startswith("ppl/")]
    lines = [
        f"**{spec.method.label}** on {run.model.name}, calibration **{spec.sampling.label}**: "
        f"{spec.segments} segments of {spec.sequence_length} tokens, seed {spec.seed}."
    ]
    if languages:
        lines += [
            f"On {next(iter(run.evaluation))}, perplexity over that of the dense model is "
            f"**{metrics['ppl_increase/geomean']:.3f}** (geometric mean of the languages), "
            f"{metrics['ppl_increase/worst']:.3f} in the worst.",
            "",
            "| language | segments | perplexity | over dense | 95 % interval |",
            "|---|---:|---:|---:|---:|",
        ]
        lines += [
            f"| {language} | {run.allocation.get(language, 0)} | {metrics[f'ppl/{language}']:.2f} "
            f"| {metrics[f'ppl_increase/{language}']:.3f} "
            f"| {interval_text(stored_interval(metrics, f'ppl_increase/{language}'))} |"
            for language in languages
        ]
    return "\n".join(lines)


def journal_result(directory: RunDirectory, metrics: Mapping[str, float]) -> None:
    """Journal all that a finished run measured and that its journal lacks."""
    journal_blocks(directory, over=True)
    Journal(directory.journal).append_missing({0: metrics})


def journal_blocks(directory: RunDirectory, over: bool) -> None:
    """Journal the reports of blocks that are through, or of all where the run is ``over``."""
    # Without this part the block is being worked on, or its stage was killed right after writing it.
    reports = [one for one in read_reports(directory.blocks) if over or "propagate" in one.seconds]
    values = {
        one.block: {f"block/{name}": value for name, value in one.metrics().items()}
        | {f"layer_error/{language}": value for language, value in one.language_errors().items()}
        for one in reports
    }
    Journal(directory.journal).append_missing(values)


def _linears_table(directory: RunDirectory) -> Path:
    """Block reports as one parquet file, a row per linear."""
    rows = [
        {"block": report.block, **vars(linear)}
        for report in read_reports(directory.blocks)
        for linear in report.linears
    ]
    path = directory.path / "linears.parquet"
    pd.DataFrame(rows).to_parquet(path, index=False)
    return path


def _track_layer_errors(run: PreparedRun, directory: RunDirectory, tracked: TrackedRun) -> None:
    """Table and figure of what each language lost in each block, where that was measured."""
    reports = read_reports(directory.blocks)
    rows = [
        {"block": report.block, **vars(one), "relative": one.relative}
        for report in reports
        for one in report.layer_error
    ]
    if not rows:
        return
    path = directory.path / "layer_errors.parquet"
    partial = path.with_suffix(".parquet.tmp")
    pd.DataFrame(rows).to_parquet(partial, index=False)
    tracked.artifact(partial.replace(path), "reports")
    errors = pd.DataFrame({report.block: report.language_errors() for report in reports})
    figure = layer_error_heatmap(errors, f"Relative layer error: {_shown_name(run)}")
    tracked.artifact(save_figure(figure, directory.path / "figures" / "layer_error.png"), "figures")
