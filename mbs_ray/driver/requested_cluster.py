"""What a sweep asks of the cluster, known before a model is opened."""

from dataclasses import replace

from mbs_ray.cluster.cluster_options import ClusterOptions
from mbs_ray.run.sweep_folders import SweepFolders
from mbs_ray.run.sweep_spec import SweepSpec


def requested_cluster(sweep: SweepSpec, cluster: ClusterOptions, folders: SweepFolders) -> ClusterOptions:
    """Resolve what the sweep asks of the cluster; an ``auto`` that can change bits keeps the value it began with."""
    labels = sweep.labels(sweep.runs())
    signatures = [stored for label in labels if (stored := folders.run(label).stored_signature()) is not None]

    def begun_with(field: str) -> int | None:
        # Threads are not signed where they change nothing.
        return int(signatures[0][field]) if signatures and field in signatures[0] else None

    return replace(
        cluster,
        stages=None if sweep.layout.stages == "auto" else sweep.layout.stages,
        replicas=begun_with("replicas") if sweep.layout.replicas == "auto" else sweep.layout.replicas,
        threads=begun_with("threads") if sweep.threads == "auto" else sweep.threads,
        offload=sweep.offload,
        nvme_path=sweep.nvme_path,
        device=sweep.device,
    )
