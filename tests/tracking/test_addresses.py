"""The addresses that `mbs ui` prints lead to sweeps and views that are in the database."""

import shutil
from pathlib import Path

import pytest

from mbs_ray.run.journal import Journal
from mbs_ray.tracking.addresses import SWEEPS_SHOWN, ui_links
from mbs_ray.tracking.mlflow_client import MlflowConnection, database_uri
from mbs_ray.tracking.tracked_run import child_run, evaluation_run, sweep_run
from mbs_ray.tracking.views import own_views, publish_view, view_path

SERVER = "http://127.0.0.1:5000"


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database in which nothing is tracked yet; MLflow takes seconds to make one."""
    folder = tmp_path_factory.mktemp("empty")
    MlflowConnection(database_uri(folder), "nothing", folder / "artifacts")
    return folder / "mlflow.db"


@pytest.fixture
def uri(empty: Path, tmp_path: Path) -> str:
    shutil.copy(empty, tmp_path / "mlflow.db")
    return database_uri(tmp_path)


def test_the_lines_lead_to_the_sweep_and_to_the_views_of_its_models(uri: str, tmp_path: Path) -> None:
    connection = MlflowConnection(uri, "demo", tmp_path / "artifacts")
    sweep = sweep_run(connection, "key", "demo", {}, {})
    child_run(connection, sweep, "run", "wanda-50-equal", {}, {"model": "mini"}, Journal(tmp_path / "journal"))
    publish_view(connection.experiment_id, "mini", ["en", "sw"], connection.client)
    [(_, key)] = own_views(connection.client.get_experiment(connection.experiment_id).tags)
    number = connection.experiment_id
    assert ui_links(uri, SERVER) == [
        f"demo: {SERVER}/#/experiments/{number}/runs/{sweep.run_id}?workflowType=machine_learning",
        f"  compare mini: {SERVER}/{view_path(number, key, charts=True)}",
        f"  table mini: {SERVER}/{view_path(number, key)}",
    ]


def test_a_sweep_with_metrics_of_its_own_is_shown_and_a_lone_evaluation_is_not(uri: str, tmp_path: Path) -> None:
    connection = MlflowConnection(uri, "similarity", tmp_path / "artifacts")
    sweep_run(connection, "key", "similarity mini", {}, {}, journal=Journal(tmp_path / "own"))
    evaluation_run(connection, "alone", "mini, 0 shots", {}, {}, Journal(tmp_path / "alone"))
    (line,) = ui_links(uri, SERVER)
    assert line.startswith("similarity")


def test_the_newest_sweeps_come_first_and_old_ones_are_left_to_mlflow(uri: str, tmp_path: Path) -> None:
    for number in range(SWEEPS_SHOWN + 2):
        sweep_run(MlflowConnection(uri, f"sweep-{number}", tmp_path / "artifacts"), "key", f"sweep-{number}", {}, {})
    names = [line.partition(":")[0] for line in ui_links(uri, SERVER)]
    assert names == [f"sweep-{number}" for number in range(SWEEPS_SHOWN + 1, 1, -1)]


def test_a_database_with_nothing_in_it_or_none_at_all_has_no_lines(uri: str, tmp_path: Path) -> None:
    assert ui_links(uri, SERVER) == []
    (tmp_path / "mlflow.db").write_bytes(b"no database")
    assert ui_links(uri, SERVER) == []
