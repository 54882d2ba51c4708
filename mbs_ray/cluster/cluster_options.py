"""Options of a command for the cluster: how many actors, with how many threads, and where activations are kept."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mbs_ray.cluster.bounds import TierName

if TYPE_CHECKING:
    from mbs_ray.cluster.offload import Offload


#: What actors compute on; auto: GPUs where the cluster has any.
Device = Literal["auto", "cuda", "cpu"]


@dataclass(frozen=True)
class ClusterOptions:
    """Options for the cluster; None is resolved from the sweep file, or from what the cluster has.

    Only ``replicas``, ``threads`` and ``device`` can change bits of the results. ``address`` is that of a Ray cluster;
    None starts a local Ray, or uses that of the Ray job. ``wait``: seconds until nodes must have come.
    """

    stages: int | None = None
    replicas: int | None = None
    threads: int | None = None
    offload: TierName | Literal["auto"] | None = None
    nvme_path: Path | None = None
    address: str | None = None
    device: Device = "auto"
    wait: float | None = None

    @property
    def tiers(self) -> "Offload":
        """Requested tier of activations. Raises :class:`InputError` where its folder is missing."""
        # Loads Ray and torch, which the command line does without until it has read its options.
        from mbs_ray.cluster.offload import Offload

        return Offload(self.offload or "auto", self.nvme_path)

    @property
    def cpus(self) -> int:
        """CPUs that all requested actors need together; a number left open counts as one."""
        return (self.stages or 1) * (self.replicas or 1) * (self.threads or 1)
