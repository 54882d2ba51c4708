"""What stages compute with, imported into idle processes of Ray while the driver is still busy."""

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mbs_ray.cluster.cluster_options import ClusterOptions
from mbs_ray.cluster.garbage import collect_garbage_rarely


def import_ahead(options: ClusterOptions) -> None:
    """Have as many processes of the connected Ray import the stage as it will likely have; returns at once.

    An actor that starts takes such a process. Nothing is done where there are GPUs: which of them a process sees must
    be settled before torch is imported.
    """
    if options.device != "cpu" and ray.cluster_resources().get("GPU"):
        return
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    actors = (options.stages or 1) * (options.replicas or 1)
    for number in range(min(actors, int(ray.cluster_resources().get("CPU", 0)))):
        where = NodeAffinitySchedulingStrategy(nodes[number % len(nodes)], soft=True)
        _import.options(scheduling_strategy=where).remote()


@ray.remote(num_cpus=0, max_retries=0)
def _import() -> None:
    collect_garbage_rarely()
    import mbs_ray.cluster.stage.actor  # noqa: F401  # and with it torch and transformers
