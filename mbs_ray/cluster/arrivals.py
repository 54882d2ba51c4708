"""Nodes that are not there yet: the autoscaler is asked for them, and a command waits while they are on their way."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import ray
from ray.autoscaler.sdk import request_resources
from ray.autoscaler.v2.sdk import get_cluster_status
from ray.experimental.internal_kv import _internal_kv_get

from mbs_ray.cluster.cluster_options import ClusterOptions
from mbs_ray.cluster.connect import on_cluster
from mbs_ray.cluster.resources import needs_of_actor, room_for_actors

#: The longest wait for nodes of a cluster, unless another is asked for.
WAIT_SECONDS = 300.0
#: An autoscaler that reports no node on its way for this long brings none: it looks every five seconds.
QUIET_SECONDS = 15.0
_LOOK_SECONDS = 1.0
#: Where the autoscaler of older clusters leaves its report.
_OLDER_REPORT = "__autoscaling_status"


@dataclass(frozen=True)
class Wanted:
    """The actors that a command has use for: how many, and the resources of each in Ray's words."""

    actors: int
    threads: int | None
    device: str

    @property
    def bundle(self) -> dict[str, float]:
        return {"CPU": float(self.threads or 1)} | ({"GPU": 1.0} if self.device == "cuda" else {})

    @property
    def there(self) -> int:
        """Number of these actors that there is room for, at most those wanted."""
        if self.device == "cuda" and not ray.cluster_resources().get("GPU"):
            return 0
        return min(self.actors, room_for_actors(self.threads, self.device))

    def __str__(self) -> str:
        return f"{self.actors} actor(s) of {needs_of_actor(self.threads, self.device)}"


@contextmanager
def nodes_awaited(options: ClusterOptions, useful: int, say: Callable[[str], None]) -> Iterator[None]:
    """Ask the autoscaler, until the end of the context, for what a command has use for; first wait until it is there.

    ``useful``: stages of use where their number is left open. Waiting ends after ``options.wait`` seconds; by default
    after :data:`WAIT_SECONDS` on a cluster, or earlier once no node is on its way any more, and at once on a local Ray.
    What is missing then is told by what counts on it.
    """
    limit = options.wait if options.wait is not None else WAIT_SECONDS if on_cluster(options.address) else 0.0
    actors = (options.stages or useful) * (options.replicas or 1)
    # Where the kind of device is left open GPUs are asked for: they may be booting.
    wanted = Wanted(actors, options.threads, "cpu" if options.device == "cpu" else "cuda")
    if not limit or wanted.there == wanted.actors:
        yield
        return
    request_resources(bundles=[wanted.bundle] * wanted.actors)
    try:
        _wait(wanted, limit, patient=options.wait is not None, say=say)
        yield
    finally:
        if ray.is_initialized():  # not after an interruption that ended it
            request_resources(bundles=[])


def nodes_on_their_way() -> int:
    """Count the nodes that the autoscaler has asked its provider for and that have not joined the cluster yet."""
    address = ray.get_runtime_context().gcs_address
    status = get_cluster_status(address)
    on_their_way = len(status.pending_nodes) + sum(one.count for one in status.pending_launches)
    if older := _internal_kv_get(_OLDER_REPORT):
        report = json.loads(older).get("autoscaler_report") or {}
        on_their_way += len(report.get("pending_nodes") or ()) + sum((report.get("pending_launches") or {}).values())
    return on_their_way


def _wait(wanted: Wanted, limit: float, patient: bool, say: Callable[[str], None]) -> None:
    """Wait until there is room for all; the ``patient`` do so to the limit, others while nodes are on their way."""
    begun = heard = time.monotonic()
    told = None
    while (there := wanted.there) < wanted.actors:
        now, coming = time.monotonic(), nodes_on_their_way()
        heard = now if coming else heard
        if now - begun > limit or not (patient or now - heard < QUIET_SECONDS):
            say(f"nodes: room for {there} of {wanted} after {now - begun:.0f} s, going on with what there is")
            return
        if (there, coming) != told:
            say(
                f"waiting for nodes: room for {there} of {wanted}, {coming} node(s) on their way; "
                f"at most {limit - (now - begun):.0f} s (--wait)"
            )
            told = there, coming
        time.sleep(_LOOK_SECONDS)
