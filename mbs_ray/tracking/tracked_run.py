"""One run in MLflow; while MLflow is away the journal keeps its metrics and a queue all else."""

import logging
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mbs_ray.errors import InputError
from mbs_ray.run.journal import Journal
from mbs_ray.tracking.mlflow_client import MlflowConnection
from mbs_ray.tracking.parameters import flatten, looks_secret

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow import MlflowClient

_LOG = logging.getLogger(__name__)

KEY_TAG = "mbs.key"
_KIND_TAG = "mbs.kind"
_PARENT_TAG = "mlflow.parentRunId"

# MLflow's limits per request and per value.
_METRICS_PER_BATCH = 1000
_PARAMS_PER_BATCH = 100
_LONGEST_TAG = 8000


class TrackedRun:
    """A run in MLflow, made or found again by its key, and everything that MLflow has not taken yet.

    Made by :func:`sweep_run`, :func:`child_run`, :func:`aggregate_run` and :func:`evaluation_run`.
    `run_id` is empty until MLflow could be reached.
    """

    def __init__(
        self,
        connection: MlflowConnection,
        kind: Literal["sweep", "run", "aggregate"],
        parent: "TrackedRun | None",
        key: str,
        name: str,
        params: Mapping[str, Any],
        tags: Mapping[str, str],
        journal: Journal | None,
        reopen: bool = True,
    ) -> None:
        """Find or make the run, if MLflow can be reached.

        kind: what `mbs ui` takes it for; reopen: whether a run that ended counts as running again.
        """
        if "'" in key:
            raise InputError(f"{key!r} cannot be the key of a run: it holds a quotation mark")
        self.run_id = ""
        self._connection = connection
        self._parent = parent
        self.name = name
        self._params = flatten(params)
        self._identity = {_KIND_TAG: kind, KEY_TAG: key}
        self._tags = {tag: str(value) for tag, value in tags.items() if not looks_secret(tag)}
        self._journal = journal
        self._reopen = reopen
        self._delivered = 0
        self._children: list[TrackedRun] = []
        self._queue: deque[Callable[[MlflowClient], None]] = deque()
        if parent is not None:
            parent._children.append(self)
        self._connection.attempt(self._deliver)

    def sync(self) -> bool:
        """Deliver what MLflow lacks of this run and then of its children; False when something is left.

        Safe to repeat, also from a new process: MLflow's stores keep one row per (run, metric, value, step,
        timestamp), so a replay of the whole journal doubles nothing.
        """
        return self._connection.attempt(self._deliver) and all(child.sync() for child in self._children)

    def artifact(self, path: Path, folder: str = "") -> None:
        """Copy a file, or a folder with all it holds, to the run's artefacts under `folder`."""
        path = path.absolute()

        def deliver(client: "MlflowClient") -> None:
            if path.exists():
                client.log_artifact(self.run_id, str(path), folder or None)
            else:
                _LOG.warning("run %s goes without its artefact in MLflow: there is no %s", self.name, path)

        self.enqueue(deliver)

    def figure(self, figure: "Figure", name: str) -> None:
        """Keep a figure as the artefact `figures/<name>.png`."""
        self.enqueue(lambda client: client.log_figure(self.run_id, figure, f"figures/{name}.png"))

    def note(self, markdown: str) -> None:
        """Show this text as the run's description; one too long for MLflow is kept whole as `note.md`."""

        def deliver(client: "MlflowClient") -> None:
            shown = markdown
            if len(markdown) > _LONGEST_TAG:
                client.log_text(self.run_id, markdown, "note.md")
                ending = "\n\n… (the whole text is the artefact note.md)"
                shown = markdown[: _LONGEST_TAG - len(ending)].rpartition("\n")[0] + ending
            client.set_tag(self.run_id, "mlflow.note.content", shown)

        self.enqueue(deliver)

    def tag(self, name: str, value: str) -> None:
        """Set a tag of the run, now or once MLflow is back."""
        self.enqueue(lambda client: client.set_tag(self.run_id, name, value))

    def enqueue(self, deliver: "Callable[[MlflowClient], None]") -> None:
        """Do this with MLflow after all that was asked for before, now or once MLflow is back.

        It may be done twice where MLflow's answer was lost, so it must not matter how often.
        """
        self._queue.append(deliver)
        self._connection.attempt(self._deliver)

    def finish(self, status: Literal["FINISHED", "FAILED", "KILLED"]) -> None:
        """Deliver what is left and end the run; asks MLflow even if it was away a moment ago."""
        self._queue.append(lambda client: client.set_terminated(self.run_id, status))
        if self._connection.attempt(self._deliver, urgent=True):
            self.sync()

    def _deliver(self) -> None:
        # In this order: the run itself, its metrics, then what was queued, oldest first. Whatever fails ends the
        # attempt here, and the next one begins again with what is not done.
        client = self._connection.client
        self._open(client)
        if self._journal is not None:
            self.deliver_metrics(client, self._journal)
        while self._queue:
            self._unless_refused(partial(self._queue[0], client))
            self._queue.popleft()

    def _open(self, client: "MlflowClient") -> None:
        if self.run_id:
            return
        identity = dict(self._identity)
        if self._parent is not None:
            self._parent._open(client)
            identity[_PARENT_TAG] = self._parent.run_id
        found = self._find(client, identity)
        if found is None:
            found = client.create_run(self._connection.experiment_id, tags=self._tags | identity, run_name=self.name)
        elif self._reopen:
            client.update_run(found.info.run_id, status="RUNNING")
        self.describe(client, found)
        self.run_id = found.info.run_id

    def _find(self, client: "MlflowClient", identity: Mapping[str, str]) -> Any:
        runs = client.search_runs(
            [self._connection.experiment_id],
            filter_string=" and ".join(f"tags.`{tag}` = '{value}'" for tag, value in identity.items()),
            order_by=["attributes.start_time ASC"],
            max_results=1,
        )
        return runs[0] if runs else None

    def describe(self, client: "MlflowClient", found: Any) -> None:
        """Give a run that was found or made its tags, and the parameters that it lacks."""
        from mlflow.entities import Param, RunTag

        known = found.data.params
        changed = sorted(key for key, value in self._params.items() if known.get(key, value) != value)
        if changed:
            _LOG.warning("run %s keeps in MLflow the first values of: %s", self.name, ", ".join(changed))
        tags = [RunTag(tag, value) for tag, value in self._tags.items()]
        self._unless_refused(partial(client.log_batch, found.info.run_id, tags=tags))
        new = [Param(key, value) for key, value in self._params.items() if key not in known]
        for start in range(0, len(new), _PARAMS_PER_BATCH):
            batch = new[start : start + _PARAMS_PER_BATCH]
            self._unless_refused(partial(client.log_batch, found.info.run_id, params=batch))

    def deliver_metrics(self, client: "MlflowClient", journal: Journal) -> None:
        """Deliver the entries of the journal that this object has not delivered yet."""
        from mlflow.entities import Metric

        new = [Metric(e.key, e.value, e.timestamp, e.step) for e in journal.entries()[self._delivered :]]
        for start in range(0, len(new), _METRICS_PER_BATCH):
            batch = new[start : start + _METRICS_PER_BATCH]
            self._unless_refused(partial(client.log_batch, self.run_id, metrics=batch))
            self._delivered += len(batch)

    def _unless_refused(self, deliver: Callable[[], None]) -> None:
        """Deliver, but give up what MLflow will never take: it would hold up all that comes after it."""
        from mlflow.exceptions import MlflowException

        try:
            deliver()
        except MlflowException as error:
            if error.error_code != "INVALID_PARAMETER_VALUE":
                raise
            _LOG.warning("MLflow refuses a part of run %s: %s", self.name, error.message)


def sweep_run(
    connection: MlflowConnection,
    key: str,
    name: str,
    params: Mapping[str, Any],
    tags: Mapping[str, str],
    reopen: bool = True,
    journal: Journal | None = None,
) -> TrackedRun:
    """Open the parent run with this key in the experiment; one that exists is continued.

    One that has metrics of its own, and so mostly no children, takes them from `journal`.
    """
    return TrackedRun(connection, "sweep", None, key, name, params, tags, journal, reopen)


def child_run(
    connection: MlflowConnection,
    parent: TrackedRun,
    key: str,
    name: str,
    params: Mapping[str, Any],
    tags: Mapping[str, str],
    journal: Journal,
    reopen: bool = True,
) -> TrackedRun:
    """Open the child of `parent` with this key; one that exists is continued. Its metrics come from `journal`."""
    return TrackedRun(connection, "run", parent, key, name, params, tags, journal, reopen)


def aggregate_run(
    connection: MlflowConnection,
    parent: TrackedRun,
    key: str,
    name: str,
    params: Mapping[str, Any],
    tags: Mapping[str, str],
    journal: Journal,
) -> TrackedRun:
    """Open the child of `parent` with this key that stands for several others; one that exists is continued."""
    return TrackedRun(connection, "aggregate", parent, key, name, params, tags, journal, reopen=False)


def evaluation_run(
    connection: MlflowConnection,
    key: str,
    name: str,
    params: Mapping[str, Any],
    tags: Mapping[str, str],
    journal: Journal,
) -> TrackedRun:
    """Open the run with this key of a checkpoint that was scored alone: it has no parent."""
    return TrackedRun(connection, "run", None, key, name, params, tags, journal)
