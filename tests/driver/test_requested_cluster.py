"""What a sweep asks of the cluster before anything is opened: its file's, and what its runs began with."""

import json
from pathlib import Path
from typing import Any

import pytest

from mbs_ray.cluster.cluster_options import ClusterOptions
from mbs_ray.driver.requested_cluster import requested_cluster
from mbs_ray.run.sweep_folders import SweepFolders
from mbs_ray.run.sweep_spec import SweepSpec, validated


def spec(**fields: Any) -> SweepSpec:
    run = {"model": "m", "corpus": "c", "languages": ["en"], "segments": 2, "sampling": "equal", "method": "wanda"}
    return validated(SweepSpec, {"name": "asked", "run": run, **fields})


@pytest.mark.parametrize(
    ("fields", "replicas", "threads"),
    [({}, 2, 3), ({"layout": {"replicas": 4}, "threads": 1}, 4, 1)],
    ids=["auto", "given"],
)
def test_what_is_left_open_stays_as_it_was_begun(
    tmp_path: Path, fields: dict[str, Any], replicas: int, threads: int
) -> None:
    sweep, folders = spec(**fields), SweepFolders(tmp_path, "asked")
    assert requested_cluster(spec(), ClusterOptions(wait=5.0), folders) == ClusterOptions(offload="auto", wait=5.0)
    (label,) = sweep.labels(sweep.runs())
    folders.run(label).path.mkdir(parents=True)
    (folders.run(label).path / "signature.json").write_text(json.dumps({"replicas": 2, "threads": 3}))
    asked = requested_cluster(sweep, ClusterOptions(address="a:1"), folders)
    assert (asked.replicas, asked.threads, asked.stages, asked.address) == (replicas, threads, None, "a:1")
    assert asked.cpus == replicas * threads
