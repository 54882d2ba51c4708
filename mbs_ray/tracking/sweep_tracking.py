"""What is logged of a sweep in MLflow: parent and runs, block reports as they come, results."""

import logging
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import ray

from mbs_ray import __version__
from mbs_ray.files import digest, write_json
from mbs_ray.report.colours import OTHER_SAMPLING, SAMPLING_COLOURS
from mbs_ray.run.directory import ALLOCATION, BUDGET, SEARCH, SPEC, TOP_UP, WEIGHTS, RunDirectory
from mbs_ray.run.journal import Journal
from mbs_ray.run.prepare import PreparedRun
from mbs_ray.run.sweep_folders import SweepFolders
from mbs_ray.text.redaction import all_without_secrets, without_secrets
from mbs_ray.tracking.aggregates import track_aggregates
from mbs_ray.tracking.mlflow_client import MlflowConnection
from mbs_ray.tracking.shown_names import shown_run
from mbs_ray.tracking.tracked_results import journal_blocks, track_results
from mbs_ray.tracking.tracked_run import TrackedRun, child_run, sweep_run
from mbs_ray.tracking.tracked_texts import dataset_inputs
from mbs_ray.tracking.views import RUN_COLOUR_TAG, publish_view

if TYPE_CHECKING:
    from mlflow import MlflowClient

_LOG = logging.getLogger(__name__)

Ending = Literal["FINISHED", "FAILED", "KILLED"]


class SweepTracking:
    """A sweep in MLflow: its parent run and the open children, by label."""

    def __init__(self, connection: MlflowConnection, folders: SweepFolders, params: Mapping[str, Any]) -> None:
        self._connection, self._folders = connection, folders
        self._told: dict[str, Any] = {
            "key": digest(str(folders.sweep)),
            "name": folders.name,
            "params": {**params, "mbs_ray": __version__},
            "tags": {"mbs.folder": str(folders.sweep)},
        }
        self.parent = sweep_run(connection, **self._told)
        self._open: dict[str, TrackedRun] = {}
        self._viewed: set[str] = set()
        self._warned: set[str] = set()

    def begin(self, run: PreparedRun, signature: Mapping[str, Any], resolved: Mapping[str, Any]) -> None:
        """Open, or find again, the MLflow run of a run that is about to be worked on."""
        directory = self._folders.run(run.label)
        spec = all_without_secrets(run.spec.model_dump(mode="json"))
        told: dict[str, Any] = {
            "key": _known_key(directory) or digest(str(directory.path), str(sorted(signature.items()))),
            "name": shown_run(run),
            "params": {
                **{field: value for field, value in spec.items() if field not in ("languages", "evaluation")},
                "languages": ",".join(run.languages),
                "evaluation": ",".join(run.evaluation),
                "fingerprint": {"model": run.model.fingerprint, "calibration": run.calibration.fingerprint},
                # Ids with which every segment begins, where the tokenizer begins a text with any.
                **({"begin": list(begin)} if (begin := run.calibration.begin) else {}),
                "resolved": resolved,
                "version": {"mbs_ray": __version__, "ray": ray.__version__},
            },
            "tags": {
                "model": run.model.name,
                "method": run.spec.method.label,
                "sampling": run.spec.sampling.label,
                "statistics": run.spec.statistics_label,
                "seed": str(run.spec.seed),
                "mbs.folder": str(directory.path),
                RUN_COLOUR_TAG: SAMPLING_COLOURS.get(run.spec.sampling.name, OTHER_SAMPLING),
            },
        }
        directory.keep_tracking_identity({"experiment": self._folders.name, "sweep": self._told, "run": told})
        tracked = child_run(self._connection, self.parent, **told, journal=Journal(directory.journal))
        self._open[run.label] = tracked
        inputs = dataset_inputs(run)
        tracked.enqueue(lambda client: client.log_inputs(tracked.run_id, inputs))
        if run.model.name not in self._viewed:
            self._viewed.add(run.model.name)
            tracked.enqueue(partial(self._publish_view, run))
        files = {
            ALLOCATION: run.allocation,
            SPEC: spec,
            WEIGHTS: run.shares,
            SEARCH: run.search,
            BUDGET: run.dealt,
            TOP_UP: run.top_up,
        }
        for name, content in files.items():
            if content is None:
                continue
            write_json(directory.path / name, content)
            tracked.artifact(directory.path / name)

    def _publish_view(self, run: PreparedRun, client: "MlflowClient") -> None:
        scored = run.languages if run.evaluation else ()
        measured = run.languages if run.spec.per_language else ()
        publish_view(self._connection.experiment_id, run.model.name, scored, client, measured, list(run.groups))

    def sync(self) -> None:
        """Journal the blocks that were finished since the last call, and bring MLflow up to date."""
        for label, tracked in self._open.items():
            try:
                journal_blocks(self._folders.run(label), over=False)
            except (OSError, ValueError) as error:  # a full disk: what is missing is journalled when the run ends
                if label not in self._warned:
                    self._warned.add(label)
                    _LOG.warning("metrics of run %s are late: %s", label, " ".join(str(error).split()))
            tracked.sync()

    def finish(self, label: str, metrics: Mapping[str, float]) -> bool:
        """Deliver a finished run; False when MLflow has not taken all of it yet.

        Whatever this raises, the run stays open, so that :meth:`fail` can say why.
        """
        tracked = self._open[label]
        track_results(self._folders.run(label), metrics, tracked)
        tracked.finish("FINISHED")
        delivered = tracked.sync()
        del self._open[label]
        return delivered

    def aggregate(self) -> None:
        """Give MLflow the means over seeds, where finished runs differ by their seeds alone."""
        for _ in track_aggregates(self._folders, self._connection, self.parent):
            pass

    def fail(self, label: str, reason: str) -> None:
        """Say why a run failed; nothing where it could not even be opened."""
        tracked = self._open.pop(label, None)
        if tracked is None:
            return
        tracked.note(f"failed: {without_secrets(reason)}")
        tracked.finish("FAILED")

    def close(self, status: Ending) -> bool:
        """End what is still open; False when MLflow has not taken everything yet."""
        for tracked in self._open.values():
            tracked.finish(status)
        self.parent.finish(status)
        return self.parent.sync()


def _known_key(directory: RunDirectory) -> str | None:
    """Return the key of a run that MLflow has seen: an update may change how signatures are made, and it stays.

    A copy of the directory is a run of its own.
    """
    known = directory.tracking_identity()
    if known is None or known["run"]["tags"].get("mbs.folder") != str(directory.path):
        return None
    return str(known["run"]["key"])
