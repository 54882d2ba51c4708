"""The addresses that `mbs ui` prints lead to sweeps and views that are in the database."""

import shutil
from pathlib import Path

import pytest

from mbs_ray.journal import Journal
from mbs_ray.tracking import Tracking, database_uri
from mbs_ray.ui_links import SWEEPS_SHOWN, ui_links
from mbs_ray.ui_views import own_views, publish_view, view_path

SERVER = "http://127.0.0.1:5000"


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database in which nothing is tracked yet; MLflow takes seconds to make one."""
    folder = tmp_path_factory.mktemp("empty")
    Tracking(database_uri(folder), "nothing", folder / "artifacts")
    return folder / "mlflow.db"


@pytest.fixture
def uri(empty: Path, tmp_path: Path) -> str:
    shutil.copy(empty, tmp_path / "mlflow.db")
    return database_uri(tmp_path)


def test_the_lines_lead_to_the_sweep_and_to_the_views_of_its_models(uri: str, tmp_path: Path) -> None:
    tracking = Tracking(uri, "demo", tmp_path / "artifacts")
    sweep = tracking.sweep("key", "demo", {}, {})
    tracking.run(sweep, "run", "wanda-50-equal", {}, {"model": "mini"}, Journal(tmp_path / "journal"))
    publish_view(tracking.experiment_id, "mini", ["en", "sw"], tracking.client)
    [(_, key)] = own_views(tracking.client.get_experiment(tracking.experiment_id).tags)
    number = tracking.experiment_id
    assert ui_links(uri, SERVER) == [
        f"demo: {SERVER}/#/experiments/{number}/runs/{sweep.run_id}?workflowType=machine_learning",
        f"  compare mini: {SERVER}/{view_path(number, key, charts=True)}",
        f"  table mini: {SERVER}/{view_path(number, key)}",
    ]


def test_a_sweep_with_metrics_of_its_own_is_shown_and_a_lone_evaluation_is_not(uri: str, tmp_path: Path) -> None:
    tracking = Tracking(uri, "similarity", tmp_path / "artifacts")
    tracking.sweep("key", "similarity mini", {}, {}, journal=Journal(tmp_path / "own"))
    tracking.evaluation("alone", "mini, 0 shots", {}, {}, Journal(tmp_path / "alone"))
    (line,) = ui_links(uri, SERVER)
    assert line.startswith("similarity")


def test_the_newest_sweeps_come_first_and_old_ones_are_left_to_mlflow(uri: str, tmp_path: Path) -> None:
    for number in range(SWEEPS_SHOWN + 2):
        Tracking(uri, f"sweep-{number}", tmp_path / "artifacts").sweep("key", f"sweep-{number}", {}, {})
    names = [line.partition(":")[0] for line in ui_links(uri, SERVER)]
    assert names == [f"sweep-{number}" for number in range(SWEEPS_SHOWN + 1, 1, -1)]


def test_a_database_with_nothing_in_it_or_none_at_all_has_no_lines(uri: str, tmp_path: Path) -> None:
    assert ui_links(uri, SERVER) == []
    (tmp_path / "mlflow.db").write_bytes(b"no database")
    assert ui_links(uri, SERVER) == []
