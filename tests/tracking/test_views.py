"""The views of MLflow's runs page: stored as MLflow's own page reads them, one per model, nobody else's touched."""

import base64
import json
import uuid
import zlib
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import mlflow.server
import pytest
from mlflow import MlflowClient

from mbs_ray.tracking.views import own_views, publish_view, run_path, view_path, view_state

LANGUAGES = ["en", "fr", "hi", "sw"]
NOTE = "mlflow.note.content"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> MlflowClient:
    return MlflowClient(tracking_uri=f"sqlite:///{tmp_path_factory.mktemp('views')}/mlflow.db")


@pytest.fixture
def experiment(client: MlflowClient) -> str:
    return str(client.create_experiment(f"experiment-{uuid.uuid4()}"))


def tags(client: MlflowClient, experiment: str) -> dict[str, str]:
    return dict(client.get_experiment(experiment).tags)


def unpacked(tag: str) -> dict[str, Any]:
    kind, _, packed = json.loads(tag)["state"].partition(";")
    assert kind == "deflate"
    return dict(json.loads(zlib.decompress(base64.b64decode(packed))))


def test_a_view_is_stored_in_the_form_and_under_the_key_that_its_address_names(
    client: MlflowClient, experiment: str
) -> None:
    publish_view(experiment, "bloom-7b1", LANGUAGES, client)
    stored = tags(client, experiment)
    [(model, key)] = own_views(stored)
    address, _, query = view_path(experiment, key, charts=True).partition("?")
    asked = parse_qs(query)
    assert address == f"#/experiments/{experiment}/runs"
    assert (asked["workflowType"], asked["compareRunsMode"]) == (["machine_learning"], ["CHART"])
    view = stored[f"mlflow.sharedViewState.{asked['viewStateShareKey'][0]}"]
    assert (model, json.loads(view)["name"]) == ("bloom-7b1", "bloom-7b1")
    assert isinstance(json.loads(view)["createdAt"], int)
    assert unpacked(view) == view_state("bloom-7b1", LANGUAGES)
    assert "compareRunsMode" not in view_path(experiment, key)


def test_a_view_finds_the_runs_of_its_model_alone_by_name(client: MlflowClient, experiment: str) -> None:
    for model, name in (("mini's", "b"), ("other", "c"), ("mini's", "a")):
        client.create_run(experiment, tags={"model": model}, run_name=name)
    client.create_run(experiment, run_name="the sweep")
    for model, names in (("mini's", ["a", "b"]), ("other", ["c"])):
        state = view_state(model, LANGUAGES)
        order = f"{state['orderByKey']} {'ASC' if state['orderByAsc'] else 'DESC'}"
        found = client.search_runs([experiment], filter_string=state["searchFilter"], order_by=[order])
        assert [run.info.run_name for run in found] == names


def test_the_summaries_the_largest_and_the_smallest_languages_come_first() -> None:
    state = view_state("model", LANGUAGES)
    order = ["geomean", "worst", "en", "sw", "hi", "fr"]
    assert state["selectedColumns"] == [f"metrics.`ppl_increase/{name}`" for name in order]
    assert state["columnOrder"][-len(order) :] == state["selectedColumns"]
    assert set(state["columnWidths"]) == set(state["columnOrder"])
    bars = [chart["metricKey"] for chart in state["compareRunCharts"] if chart["type"] == "BAR"]
    assert bars == [f"ppl_increase/{name}" for name in order]


def test_groups_of_languages_come_after_the_worst_language() -> None:
    state = view_state("model", LANGUAGES, groups=["latin", "low-share"])
    shown = ["geomean", "worst", "latin", "low-share", "en"]
    assert state["selectedColumns"][: len(shown)] == [f"metrics.`ppl_increase/{name}`" for name in shown]


def test_every_chart_lies_in_a_section_and_no_two_share_a_name() -> None:
    for languages, measured in ((LANGUAGES, []), ([], LANGUAGES), ([], [])):
        state = view_state("model", languages, measured)
        charts, sections = state["compareRunCharts"], {one["uuid"] for one in state["compareRunSections"]}
        assert {chart["metricSectionId"] for chart in charts} <= sections
        assert len({chart["uuid"] for chart in charts}) == len(charts)
        assert len(charts) == (len(languages) + 2 if languages else 0) + 2 + len(measured)
        shown = [chart["metricSectionId"] for chart in charts if chart["type"] == "LINE"]
        assert shown == ["mbs-block"] * 2 + ["mbs-layer_error"] * len(measured)
        assert len(sections) == (3 if measured else 2)


def test_layer_errors_are_drawn_over_the_blocks_the_smallest_languages_first() -> None:
    charts = view_state("model", LANGUAGES, LANGUAGES)["compareRunCharts"]
    errors = [chart for chart in charts if chart["metricKey"].startswith("layer_error/")]
    assert [chart["metricKey"] for chart in errors] == [f"layer_error/{code}" for code in ("en", "sw", "hi", "fr")]
    assert all(chart["selectedMetricKeys"] == [chart["metricKey"]] and chart["xAxisKey"] == "step" for chart in errors)


def test_lines_are_drawn_as_measured_and_charts_of_what_was_not_measured_are_hidden() -> None:
    state = view_state("model", LANGUAGES, LANGUAGES)
    lines = [chart for chart in state["compareRunCharts"] if chart["type"] == "LINE"]
    assert state["globalLineChartConfig"]["lineSmoothness"] == 0
    assert lines and all(chart["useGlobalLineSmoothing"] for chart in lines)
    assert state["hideEmptyCharts"]


def test_a_model_has_one_view_however_often_it_is_published(client: MlflowClient, experiment: str) -> None:
    for languages in (["en"], LANGUAGES):
        publish_view(experiment, "first", languages, client)
        publish_view(experiment, "second", languages, client)
    views = own_views(tags(client, experiment))
    assert [model for model, _ in views] == ["first", "second"]
    for model, key in views:
        assert unpacked(tags(client, experiment)[f"mlflow.sharedViewState.{key}"]) == view_state(model, LANGUAGES)


def test_the_view_of_many_languages_fits_into_a_tag(client: MlflowClient, experiment: str) -> None:
    publish_view(experiment, "model", [f"language-{number}" for number in range(200)], client)
    assert len(own_views(tags(client, experiment))) == 1


def test_the_description_leads_to_every_view_and_replaces_nobody_elses(client: MlflowClient, experiment: str) -> None:
    publish_view(experiment, "second", LANGUAGES, client)
    publish_view(experiment, "first", LANGUAGES, client)
    note = tags(client, experiment)[NOTE]
    for model, key in own_views(tags(client, experiment)):
        assert f"[{model}]({view_path(experiment, key, charts=True)})" in note
        assert f"[table]({view_path(experiment, key)})" in note
    assert note.index("[first]") < note.index("[second]")
    client.set_experiment_tag(experiment, NOTE, "my own words")
    publish_view(experiment, "third", LANGUAGES, client)
    assert tags(client, experiment)[NOTE] == "my own words"


def test_views_of_other_people_and_damaged_ones_are_left_out() -> None:
    prefix = "mlflow.sharedViewState."
    good = json.dumps({"name": "model", "createdAt": 1, "state": "{}"})
    found = {f"{prefix}mbs-1": good, f"{prefix}theirs": good, f"{prefix}mbs-2": "{", f"{prefix}mbs-3": "[]"}
    assert own_views(found) == [("model", "mbs-1")]


def test_the_page_of_the_installed_mlflow_knows_every_word_of_a_view() -> None:
    """What MLflow documents nowhere is looked for in the program its page runs: a later version may rename it."""
    scripts = Path(mlflow.server.__file__).parent / "js" / "build" / "static" / "js"
    page = "".join(script.read_text(encoding="utf-8") for script in scripts.glob("*.js"))
    state = view_state("model", LANGUAGES)
    words = {*state, *state["compareRunSections"][0], *state["globalLineChartConfig"]}
    words |= {*(key for one in state["compareRunCharts"] for key in one)}
    words |= {"mlflow.sharedViewState.", "viewStateShareKey", "workflowType", "machine_learning", "compareRunsMode"}
    words |= {"mlflow.runColor", "runDateAndNestInfo", "SHOW_ALL", "createdAt"}
    assert {word for word in words if word not in page} == set()


def test_a_run_has_an_address_of_its_own() -> None:
    assert run_path("3", "abc") == "#/experiments/3/runs/abc?workflowType=machine_learning"
