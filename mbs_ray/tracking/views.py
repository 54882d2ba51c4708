"""A view of MLflow's runs page for each model of a sweep: which runs, columns and charts, in which order.

MLflow keeps such a view as a tag of the experiment: `{name, createdAt, state}` in JSON, the state deflated. It
stands in the menu "Views" of the runs page, and an address can name it.
"""

import base64
import json
import time
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from mbs_ray.evaluation.metric_names import GEOMEAN, INCREASE, WORST, MetricNames
from mbs_ray.files import digest

if TYPE_CHECKING:
    from mlflow import MlflowClient


VIEW_TAG = "mlflow.sharedViewState."
RUN_COLOUR_TAG = "mlflow.runColor"
_OWN_VIEW = f"{VIEW_TAG}mbs-"
_NOTE_TAG = "mlflow.note.content"
_NOTE_BEGINS = "Compare the runs of "

# Without it MLflow shows the menu of an application under development, whose pages are empty here.
_WORKFLOW = "workflowType=machine_learning"
_BLOCKS, _LAYER_ERRORS = "block", "layer_error"
_LOSSES = ("relative_loss", "loss")
_MOST_RUNS = 100

# Pixels. What a name takes was measured on MLflow's page; a metric's column holds the 18 digits of its value.
_NAME_WIDTH, _DATE_WIDTH, _METRIC_WIDTH, _CHARACTER = 300, 140, 145, 8


def publish_view(
    experiment_id: str,
    model: str,
    languages: Sequence[str],
    client: "MlflowClient",
    measured: Sequence[str] = (),
    groups: Sequence[str] = (),
) -> None:
    """Write, or renew, the view of a model, and link all such views in the experiment's description.

    `languages`: those the model was scored in, in table order; `measured`: those whose layer error is measured;
    `groups`: those of languages that have means of their own; all may be empty. A description that
    somebody else wrote is left alone.
    """
    state = _packed(view_state(model, languages, measured, groups))
    value = {"name": model, "createdAt": time.time_ns() // 1_000_000, "state": state}
    client.set_experiment_tag(experiment_id, f"{_OWN_VIEW}{digest(model)}", json.dumps(value))
    tags = client.get_experiment(experiment_id).tags
    if tags.get(_NOTE_TAG, "").startswith(_NOTE_BEGINS) or not tags.get(_NOTE_TAG):
        links = [
            f"[{name}]({view_path(experiment_id, key, charts=True)}) ([table]({view_path(experiment_id, key)}))"
            for name, key in own_views(tags)
        ]
        client.set_experiment_tag(experiment_id, _NOTE_TAG, f"{_NOTE_BEGINS}{', '.join(links)}.")


def own_views(tags: Mapping[str, str]) -> list[tuple[str, str]]:
    """Find model and key of every view that `publish_view` wrote among the tags of an experiment, by model."""
    views = []
    for tag, value in tags.items():
        if tag.startswith(_OWN_VIEW):
            # Anybody may write such a tag; MLflow leaves out of its menu what it cannot read, and so does this.
            with suppress(ValueError, KeyError, TypeError):
                views.append((str(json.loads(value)["name"]), tag.removeprefix(VIEW_TAG)))
    return sorted(views)


def view_path(experiment_id: str, key: str, charts: bool = False) -> str:
    """Return the path, from the root of the server, at which MLflow shows a view, as a table or as charts."""
    mode = "&compareRunsMode=CHART" if charts else ""
    return f"#/experiments/{experiment_id}/runs?{_WORKFLOW}&viewStateShareKey={quote(key)}{mode}"


def run_path(experiment_id: str, run_id: str) -> str:
    """Return the path, from the root of the server, at which MLflow shows a run."""
    return f"#/experiments/{experiment_id}/runs/{run_id}?{_WORKFLOW}"


def view_state(
    model: str, languages: Sequence[str], measured: Sequence[str] = (), groups: Sequence[str] = ()
) -> dict[str, Any]:
    """Describe a view to MLflow's runs page: the runs of a model by name, the increase of each language first.

    Before the languages come the means of all and of each of the `groups`; after the losses of the blocks the layer
    errors of the `measured` languages, where there are any.
    """
    summaries = (GEOMEAN, WORST, *groups) if languages else ()
    increases = [MetricNames().increase(row) for row in (*summaries, *_telling_order(languages))]
    losses = [f"{_BLOCKS}/{name}" for name in _LOSSES]
    errors = [f"{_LAYER_ERRORS}/{name}" for name in _telling_order(measured)]
    columns = {f"metrics.`{metric}`": max(_METRIC_WIDTH, len(metric) * _CHARACTER) for metric in increases}
    widths = {"attributes.`Run Name`": _NAME_WIDTH, "runDateAndNestInfo": _DATE_WIDTH, **columns}
    quotation = '"' if "'" in model else "'"
    return {
        "searchFilter": f"tags.model = {quotation}{model}{quotation}",
        "orderByKey": "tags.`mlflow.runName`",
        "orderByAsc": True,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": list(columns),
        "columnOrder": list(widths),
        "columnWidths": widths,
        "runsHiddenMode": "SHOW_ALL",
        "compareRunCharts": [*map(_bars, increases), *map(_lines, [*losses, *errors])],
        "compareRunSections": [*map(_section, (INCREASE, _BLOCKS, *((_LAYER_ERRORS,) if errors else ())))],
        "isAccordionReordered": True,
        # What a view leaves out is not what a page without a view has: lines would be smoothed.
        "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
        "hideEmptyCharts": True,
        "autoRefreshEnabled": True,
    }


def _telling_order(languages: Sequence[str]) -> list[str]:
    """Order the largest language first, then from the smallest up: samplings differ most in these."""
    return [*languages[:1], *reversed(languages[1:])]


def _bars(metric: str) -> dict[str, Any]:
    return {**_chart(metric), "type": "BAR"}


def _lines(metric: str) -> dict[str, Any]:
    values = {"selectedMetricKeys": [metric], "xAxisKey": "step", "useGlobalLineSmoothing": True}
    return {**_chart(metric), "type": "LINE", **values}


def _chart(metric: str) -> dict[str, Any]:
    section = metric.partition("/")[0]
    return {
        "uuid": f"mbs-{metric}",
        "metricSectionId": f"mbs-{section}",
        "metricKey": metric,
        "runsCountToCompare": _MOST_RUNS,
        "deleted": False,
        "isGenerated": False,
    }


def _section(name: str) -> dict[str, Any]:
    return {
        "uuid": f"mbs-{name}",
        "name": name,
        "display": True,
        "isReordered": True,
        "deleted": False,
        "isGenerated": False,
    }


def _packed(state: Mapping[str, Any]) -> str:
    return "deflate;" + base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()
