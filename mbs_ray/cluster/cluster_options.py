"""Options of a command for the cluster: how many actors, with how many threads, and where activations are kept."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mbs_ray.cluster.bounds import TierName

if TYPE_CHECKING:
    from mbs_ray.cluster.offload import Offload


@dataclass(frozen=True)
class ClusterOptions:
    """None is settled by what there is, or by the sweep file; only ``replicas`` and ``threads`` can change a bit.

    ``address`` is that of a Ray cluster; None starts a local Ray, or takes that of the job.
    """

    stages: int | None = None
    replicas: int | None = None
    threads: int | None = None
    offload: TierName | Literal["auto"] | None = None
    nvme_path: Path | None = None
    address: str | None = None

    @property
    def tiers(self) -> "Offload":
        """Which tier of activations is asked for. Raises :class:`InputError` where its folder is missing."""
        # Loads Ray and torch, which the command line does without until it has read its options.
        from mbs_ray.cluster.offload import Offload

        return Offload(self.offload or "auto", self.nvme_path)

    @property
    def cpus(self) -> int:
        """CPUs that the actors asked for need together; a number left open counts as one."""
        return (self.stages or 1) * (self.replicas or 1) * (self.threads or 1)
