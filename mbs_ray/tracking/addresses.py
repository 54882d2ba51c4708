"""Addresses inside MLflow's pages, for whoever opens them: its own start page shows none of the results."""

from mbs_ray.tracking.mlflow_client import failures, open_client
from mbs_ray.tracking.views import own_views, run_path, view_path

SWEEPS_SHOWN = 5


def ui_links(uri: str, server: str) -> list[str]:
    """List the addresses of the newest sweeps in the database at `uri`, one a line: the result, and each model's runs.

    `server` is what the addresses begin with: `http://127.0.0.1:5000`. The list is empty where nothing was
    tracked, or where MLflow cannot read the database: its server says that better.
    """
    try:
        client = open_client(uri)
        experiments = {one.experiment_id: one for one in client.search_experiments()}
        sweeps = client.search_runs(
            list(experiments),
            filter_string="tags.`mbs.kind` = 'sweep'",
            order_by=["attributes.start_time DESC"],
            max_results=SWEEPS_SHOWN,
        )
    except failures():
        return []
    lines = []
    for sweep in sweeps:
        number = sweep.info.experiment_id
        lines.append(f"{sweep.info.run_name}: {server}/{run_path(number, sweep.info.run_id)}")
        for model, key in own_views(experiments[number].tags):
            lines.append(f"  compare {model}: {server}/{view_path(number, key, charts=True)}")
            lines.append(f"  table {model}: {server}/{view_path(number, key)}")
    return lines
