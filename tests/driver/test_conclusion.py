"""Tables of a sweep: one for each text, whatever a grid over evaluation mixes."""

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mbs_ray.cluster.layout import Layout
from mbs_ray.cluster.resources import Resources
from mbs_ray.driver.conclusion import SweepResult, write_tables
from mbs_ray.driver.sweep_jobs import SweepJobs
from mbs_ray.run.numerics import Numerics
from mbs_ray.run.prepare import Model, PreparedRun
from mbs_ray.run.spec import RunSpec
from mbs_ray.run.sweep_folders import SweepFolders
from mbs_ray.run.sweep_spec import validated
from mbs_ray.text.segment_request import SegmentRequest
from mbs_ray.tracking.mlflow_client import MlflowConnection, database_uri
from mbs_ray.tracking.tracked_run import TrackedRun, sweep_run
from tests.support.texts import some_texts, write_txt

TOKENIZER = str(files("mbs_ray") / "mini" / "models" / "bloom-mini-2m")


@pytest.fixture
def parent(tmp_path: Path) -> TrackedRun:
    return sweep_run(
        MlflowConnection(database_uri(tmp_path), "tables", tmp_path / "artifacts"), "key", "tables", {}, {}
    )


def text(folder: Path, at_most: int | None = None) -> SegmentRequest:
    if not folder.is_dir():
        folder.mkdir(parents=True)
        write_txt(folder / "en.txt", some_texts("en", 20, seed=len(folder.name)))
    return SegmentRequest(str(folder), TOKENIZER, ("en",), None, 16, at_most=at_most)


def run(label: str, model: tuple[str, str], evaluation: Mapping[str, SegmentRequest], seed: int = 0) -> PreparedRun:
    name, fingerprint = model
    fields = {"model": name, "corpus": "c", "method": "wanda", "sampling": "equal", "seed": seed}
    spec = validated(RunSpec, fields)
    opened: Any = Model(name, None, None, Path())  # type: ignore[arg-type]  # tables ask for names alone
    opened.__dict__["fingerprint"] = fingerprint
    column = ("wanda-50", label)
    calibration = next(iter(evaluation.values()))
    return PreparedRun(label, column, spec, opened, ("en",), {"en": 1}, calibration, dict(evaluation))


def tables_of(
    runs: list[PreparedRun], increases: Mapping[str, Mapping[str, float]], folder: Path, parent: TrackedRun
) -> SweepResult:
    metrics = {
        label: {f"{metric}/{row}": value for metric, value in own.items() for row in ("en", "geomean", "worst")}
        for label, own in increases.items()
    }
    jobs = SweepJobs(SweepFolders(folder, "tables"), Resources(Layout(1, 1), Numerics("cpu", 1)), {}, [])
    (folder / "tables" / "figures").mkdir(parents=True)
    result, said = SweepResult(), []
    write_tables(runs, metrics, jobs, parent, result, said.append)
    assert said == []
    return result


def test_two_texts_of_one_name_are_two_tables_files_and_parts_of_the_note(tmp_path: Path, parent: TrackedRun) -> None:
    model = ("mini", "m" * 64)
    few, all_of_it = text(tmp_path / "val", 1), text(tmp_path / "val")
    runs = [run("few", model, {"v": few}), run("few-seed1", model, {"v": few}, 1), run("all", model, {"v": all_of_it})]
    increases = {"few": {"ppl_increase": 1.5}, "few-seed1": {"ppl_increase": 2.5}, "all": {"ppl_increase": 9.0}}
    result = tables_of(runs, increases, tmp_path, parent)
    titles = {f"mini-v-{few.fingerprint[:8]}": 2, f"mini-v-{all_of_it.fingerprint[:8]}": 1}
    assert {title: len(table.columns) for title, table in result.tables.items()} == titles
    assert [table.loc["en"].to_list() for table in result.tables.values()] == [[1.5, 2.5], [9.0]]
    for title, columns in titles.items():
        stored = pd.read_csv(tmp_path / "tables" / f"increase-{title}.csv", index_col="language")
        assert len(stored.columns) == columns
        assert (tmp_path / "tables" / "figures" / f"increase-{title}.png").is_file()
    note = parent._connection.client.get_run(parent.run_id).data.tags["mlflow.note.content"]
    for request in (few, all_of_it):
        assert f"mini, v-{request.fingerprint[:8]}**" in note


def test_sets_of_some_runs_alone_and_models_of_one_name_are_apart(tmp_path: Path, parent: TrackedRun) -> None:
    one, other = text(tmp_path / "one"), text(tmp_path / "other")
    runs = [
        run("a", ("mini", "a" * 64), {"v": one}),
        run("b", ("mini", "a" * 64), {"u": other, "v": one}),
        run("c", ("mini", "c" * 64), {"v": one}),
    ]
    increases = {
        "a": {"ppl_increase": 1.5},
        "b": {"ppl_increase": 4.0, "ppl_increase_v": 2.0},
        "c": {"ppl_increase": 3.0},
    }
    result = tables_of(runs, increases, tmp_path, parent)
    found = {title: table.loc["en"].to_list() for title, table in result.tables.items()}
    assert found == {"mini-aaaaaaaa-v": [1.5, 2.0], "mini-aaaaaaaa-u": [4.0], "mini-cccccccc-v": [3.0]}


def test_titles_are_as_ever_where_there_is_one_text(tmp_path: Path, parent: TrackedRun) -> None:
    name = "n" * 300
    runs = [run("a", (name, "a" * 64), {"v": text(tmp_path / "one")})]
    result = tables_of(runs, {"a": {"ppl_increase": 1.5}}, tmp_path, parent)
    assert list(result.tables) == [f"{name}-v"]
    assert all(path.is_file() and len(path.name) <= 255 for path in (*result.files, *result.figures))
