"""Options of a command for the cluster: how many actors, with how many threads, and where activations are kept."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mbs_ray.cluster.bounds import TierName
from mbs_ray.cluster.offload import Offload


@dataclass(frozen=True)
class ClusterOptions:
    """None is settled by what there is; none of it changes a bit but ``replicas`` and ``threads``.

    ``address`` is that of a Ray cluster; None starts a local Ray, or takes that of the job.
    """

    stages: int | None = None
    replicas: int | None = None
    threads: int | None = None
    offload: TierName | Literal["auto"] = "auto"
    nvme_path: Path | None = None
    address: str | None = None

    @property
    def tiers(self) -> Offload:
        """Which tier of activations is asked for. Raises :class:`InputError` where its folder is missing."""
        return Offload(self.offload, self.nvme_path)

    @property
    def cpus(self) -> int:
        """CPUs that the actors asked for need together; those left open count as one."""
        return (self.stages or 1) * (self.replicas or 1) * (self.threads or 1)
