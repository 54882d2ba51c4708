"""Sweeps and runs in MLflow: experiment = sweep name, parent run = sweep, child run = run.

Only the driver process uses this module.
"""

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from mbs_ray.errors import InputError
from mbs_ray.text.redaction import without_secrets

if TYPE_CHECKING:
    from mlflow import MlflowClient

DATABASE = "mlflow.db"

_LOG = logging.getLogger(__name__)

# After a failed attempt that took t seconds MLflow is left alone for 9 t, so that a server that does not
# answer costs a run at most a tenth of its time; t may hold uploads that succeeded, hence the limit.
_PAUSE_PER_SECOND = 9.0
_LONGEST_PAUSE = 120.0

# By default MLflow reports usage and retries for minutes, even the creation of a run whose answer was lost,
# which then exists twice. It reads these when it is imported or called.
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


def default_tracking_uri(out: Path) -> str:
    """Return `MLFLOW_TRACKING_URI` where it is set, else the uri of the sqlite database under the absolute `out`."""
    return os.environ.get("MLFLOW_TRACKING_URI") or database_uri(out)


def database_uri(out: Path) -> str:
    """Return the uri of `mlflow.db` in a folder. Raises InputError for a path that no such uri can hold."""
    database = str(out.resolve() / DATABASE)
    if set(database) & set("%?#"):
        raise InputError(f"{database}: a database uri cannot hold % ? #; choose another --out")
    return f"sqlite:///{database}"


class MlflowConnection:
    """A connection to one experiment of one tracking server or database.

    `uri` is `sqlite:////absolute/file` or `http(s)://…`. An experiment that is made here in a database
    keeps its artefacts under `artifacts`; a server keeps them where it is configured to. Raises InputError for
    any other uri and when MLflow cannot be reached, unless `patient`: a resumed command need not wait for a server
    that it reached before. Once constructed, no failure of MLflow is raised any more: it is logged once per
    outage, and what it held up is retried.
    """

    def __init__(self, uri: str, experiment: str, artifacts: Path | None, patient: bool = False) -> None:
        self._address = without_secrets(uri)
        self._away = False
        self._resume_at = 0.0
        database = uri.startswith("sqlite:////")
        if not database and not uri.startswith(("http://", "https://")):
            raise InputError(f"{self._address}: no tracking uri; use sqlite:////absolute/file.db or http(s)://host")
        if database and artifacts is None:
            raise InputError(f"{self._address}: a database needs a folder for the artefacts; name one")
        _import_quietly()
        try:
            if database:
                _make_file(uri)
            self.client = open_client(uri)
            self._name, self._experiment_id = experiment, ""
            self._location = artifacts.resolve().as_uri() if database and artifacts else None
            if not patient:
                self._experiment_id = self._experiment()
        except failures() as error:
            raise InputError(f"{self._address}: cannot be used for tracking: {_one_line(error)}") from error

    def attempt(self, work: Callable[[], None], urgent: bool = False) -> bool:
        """Do `work` with MLflow and return whether that succeeded; `urgent` work does not wait for a pause."""
        started = time.monotonic()
        if started < self._resume_at and not urgent:
            return False
        try:
            work()
        except failures() as error:
            if not self._away:
                _LOG.warning("MLflow at %s fails, to be retried: %s", self._address, _one_line(error))
            self._away = True
            now = time.monotonic()
            self._resume_at = now + min(_PAUSE_PER_SECOND * (now - started), _LONGEST_PAUSE)
            return False
        self._away = False
        self._resume_at = 0.0
        return True

    @property
    def experiment_id(self) -> str:
        """Id of the experiment. Raises what MLflow raises where it could not be reached yet."""
        if not self._experiment_id:
            self._experiment_id = self._experiment()
        return self._experiment_id

    def _experiment(self) -> str:
        from mlflow.exceptions import MlflowException

        found = self.client.get_experiment_by_name(self._name)
        if found is None:
            return self.client.create_experiment(self._name, artifact_location=self._location)
        if found.lifecycle_stage != "active":
            raise MlflowException(f"experiment {self._name!r} was deleted; restore it or use another name")
        return found.experiment_id


def open_client(uri: str) -> "MlflowClient":
    """Make a client of the tracking server or database at `uri`."""
    _import_quietly()
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def _import_quietly() -> None:
    """Import MLflow, which takes seconds, and silence its log while it makes a database."""
    for variable, value in _ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    import mlflow  # noqa: F401

    for chatty in ("mlflow", "alembic"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def _make_file(uri: str) -> None:
    """Fail at once where MLflow would try for minutes to open the database."""
    from sqlalchemy.engine import make_url

    path = Path(make_url(uri).database or "")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab"):
        pass


def failures() -> tuple[type[Exception], ...]:
    """Return what MLflow raises for reasons outside this program; OSError covers the errors of `requests`."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return MlflowException, SQLAlchemyError, OSError


def _one_line(error: Exception) -> str:
    return without_secrets(" ".join(str(error).split()))
