"""A small sweep on a cluster of several kinds of nodes, whose GPUs Ray counts and torch has not.

``python -m tests.slow.mixed_clusters FOLDER NODES FIELDS`` prints what came of it, as JSON in its last line: NODES are
the resources of each node, the head first, and FIELDS those of the sweep file; a node with ``after`` comes so many
seconds later. WAIT: seconds that the sweep waits for nodes.
"""

import io
import json
import sys
import threading
from pathlib import Path
from typing import Any


def sweep_on(nodes: list[dict[str, int]], fields: dict[str, Any], folder: Path, wait: float | None) -> dict[str, Any]:
    import ray
    from ray.cluster_utils import Cluster
    from rich.console import Console

    from mbs_ray.driver.progress import Progress
    from mbs_ray.driver.sweep import conduct
    from mbs_ray.errors import InputError
    from mbs_ray.run.sweep_spec import SweepSpec, validated
    from tests.support.models import write_bloom, write_corpus

    store = {"object_store_memory": 80 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={**nodes[0], **store, "include_dashboard": False})
    for one in nodes[1:]:
        after = one.pop("after", 0)
        if after:
            threading.Timer(after, cluster.add_node, kwargs={**one, **store}).start()
        else:
            cluster.add_node(**one, **store)
    ray.init(address=cluster.address, log_to_driver=False, configure_logging=False)
    cluster.wait_for_nodes()
    run = {
        "model": str(write_bloom(folder / "tiny")),
        "corpus": str(write_corpus(folder / "corpus")),
        "languages": ["en", "sw"],
        "segments": 4,
        "sequence_length": 16,
        "method": "wanda",
        "sampling": "equal",
    }
    printed = io.StringIO()
    told: dict[str, Any] = {}
    try:
        spec = validated(SweepSpec, {"name": "mixed", "run": run, **fields})
        progress = Progress(Console(file=printed, width=250))
        told["failed"] = conduct(spec, folder / "out", None, progress, wait=wait).failed
        told["signature"] = json.loads(next(folder.glob("out/mixed/runs/*/signature.json")).read_text())
    except InputError as error:
        told["refused"] = str(error)
    finally:
        ray.shutdown()
        cluster.shutdown()
    told["printed"] = printed.getvalue().splitlines()
    return told


if __name__ == "__main__":
    given = [json.loads(argument) for argument in sys.argv[2:]]
    print(json.dumps(sweep_on(given[0], given[1], Path(sys.argv[1]), given[2])))
