"""A small sweep on a cluster of several kinds of nodes, whose GPUs Ray counts and torch has not.

``python -m tests.slow.mixed_clusters FOLDER NODES FIELDS WAIT`` prints what came of it, as JSON in its last line: NODES
are the resources of each node, the head first; one with ``after`` comes so many seconds after the sweep begins to
wait. FIELDS are those of the sweep file, WAIT the seconds that it waits for nodes.
"""

import io
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

STORE = {"object_store_memory": 80 * 2**20}


def sweep_on(nodes: list[dict[str, int]], fields: dict[str, Any], folder: Path, wait: float | None) -> dict[str, Any]:
    import ray
    from ray.cluster_utils import Cluster

    head, *others = nodes
    cluster = Cluster(initialize_head=True, head_node_args={**head, **STORE, "include_dashboard": False})
    for one in (one for one in others if "after" not in one):
        cluster.add_node(**one, **STORE)
    ray.init(address=cluster.address, log_to_driver=False, configure_logging=False)
    cluster.wait_for_nodes()
    try:
        # The sweep has a thread of its own: Ray starts nodes in the main thread only.
        with ThreadPoolExecutor(1) as pool:
            printed = io.StringIO()
            sweep = pool.submit(outcome_of, fields, folder, wait, printed)
            for one in (one for one in others if "after" in one):
                while "waiting for nodes" not in printed.getvalue() and not sweep.done():
                    time.sleep(0.1)
                time.sleep(one.pop("after"))
                cluster.add_node(**one, **STORE)
            return sweep.result()
    finally:
        ray.shutdown()
        cluster.shutdown()


def outcome_of(fields: dict[str, Any], folder: Path, wait: float | None, printed: io.StringIO) -> dict[str, Any]:
    from rich.console import Console

    from mbs_ray.driver.progress import Progress
    from mbs_ray.driver.sweep import conduct
    from mbs_ray.errors import InputError
    from mbs_ray.run.sweep_spec import SweepSpec, validated
    from tests.support.models import write_bloom, write_corpus

    run = {
        "model": str(write_bloom(folder / "tiny")),
        "corpus": str(write_corpus(folder / "corpus")),
        "languages": ["en", "sw"],
        "segments": 4,
        "sequence_length": 16,
        "method": "wanda",
        "sampling": "equal",
    }
    told: dict[str, Any] = {}
    try:
        spec = validated(SweepSpec, {"name": "mixed", "run": run, **fields})
        progress = Progress(Console(file=printed, width=250))
        told["failed"] = conduct(spec, folder / "out", None, progress, wait=wait).failed
        told["signature"] = json.loads(next(folder.glob("out/mixed/runs/*/signature.json")).read_text())
    except InputError as error:
        told["refused"] = str(error)
    told["printed"] = printed.getvalue().splitlines()
    return told


if __name__ == "__main__":
    given = [json.loads(argument) for argument in sys.argv[2:]]
    print(json.dumps(sweep_on(given[0], given[1], Path(sys.argv[1]), given[2])))
