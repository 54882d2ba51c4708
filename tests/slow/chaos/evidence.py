"""What a sweep left: the bits of its checkpoints and scores, and what MLflow knows of it."""

import hashlib
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq

from mbs_ray.tracking.mlflow_client import open_client


def bits(sweep: Path) -> dict[str, str]:
    """sha256 of all tensors of every run, as checkpoint and as blocks, and of the nll of every token."""
    digests = {
        str(path.relative_to(sweep)): hashlib.sha256(path.read_bytes()).hexdigest()
        for folder in ("checkpoint", "blocks", "packed")
        for path in sorted(sweep.glob(f"runs/*/{folder}/*.safetensors"))
    }
    for path in sorted(sweep.glob("runs/*/evaluation/*.parquet")):
        nll = pq.read_table(path).column("nll").to_numpy()
        digests[str(path.relative_to(sweep))] = hashlib.sha256(nll.tobytes()).hexdigest()
    return digests


def metrics(uri: str, sweep: str) -> dict[str, Counter]:
    """How often MLflow has each (metric, step, value) of each run; seconds, which differ, without their value.

    AssertionError where there is not exactly one parent, or a run twice, or one that is not FINISHED.
    """
    client = open_client(uri)
    experiment = client.get_experiment_by_name(sweep)
    runs = client.search_runs([experiment.experiment_id])
    names = Counter(run.info.run_name for run in runs)
    assert all(count == 1 for count in names.values()), names
    assert {run.info.status for run in runs} == {"FINISHED"}, {run.info.run_name: run.info.status for run in runs}
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert len(parents) == 1 and len({run.data.tags.get("mlflow.parentRunId") for run in runs}) == 2
    return {
        run.info.run_name: Counter(
            (key, one.step, None if "seconds" in key else one.value)
            for key in run.data.metrics
            for one in client.get_metric_history(run.info.run_id, key)
        )
        for run in runs
        if run not in parents
    }
