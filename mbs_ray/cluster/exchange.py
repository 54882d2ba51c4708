"""What the replicas of a stage tell each other: sums of moments, solved weights, scores."""

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist

from mbs_ray.compression import Collected, Solved
from mbs_ray.methods import Moment

START_SECONDS = 60
#: A replica waits for the slowest solver of a block; a dead one is noticed by the driver long before.
WAIT_SECONDS = 3600


class Replicas:
    """The process group of the replicas of one stage; this process is number ``rank`` of ``size``."""

    def __init__(self, rank: int, size: int, address: str) -> None:
        self.rank, self.size = rank, size
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        store = dist.TCPStore(
            *_host_and_port(address),
            world_size=size,
            is_master=rank == 0,
            timeout=datetime.timedelta(seconds=START_SECONDS),
        )
        backend = "cpu:gloo,cuda:nccl" if self._device.type == "cuda" else "gloo"
        wait = datetime.timedelta(seconds=WAIT_SECONDS)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=wait)

    def owners(self, collected: Collected) -> dict[str, int]:
        """Which replica solves which linear: those of one input together, the costliest inputs dealt out first."""
        cost = {group[0]: float(collected.moments[group[0]].columns) ** 3 for group in collected.inputs()}
        owners: dict[str, int] = {}
        load = [0.0] * self.size
        for group in sorted(collected.inputs(), key=lambda group: -cost[group[0]]):
            owner = min(range(self.size), key=lambda rank: load[rank])
            load[owner] += cost[group[0]]
            owners |= dict.fromkeys(group, owner)
        return owners

    def gather(self, collected: Collected, owners: Mapping[str, int]) -> Collected:
        """Sum what the replicas collected, each input at its owner; what others own is forgotten here."""
        own = Collected()
        for group in collected.inputs():
            moment, owner = collected.moments[group[0]], owners[group[0]]
            tokens = torch.tensor([moment.tokens, *(float(collected.energies[name]) for name in group)])
            tokens = tokens.to(torch.float64)
            dist.reduce(moment.sum, owner)
            dist.reduce(tokens, owner)
            if owner == self.rank:
                whole = Moment(moment.statistic, moment.columns, int(tokens[0]), moment.sum)
                for name, energy in zip(group, tokens[1:], strict=True):
                    own.moments[name], own.energies[name] = whole, energy
            for name in group:
                del collected.moments[name]
        return own

    def share(self, solved: Solved, owners: Mapping[str, int], tensors: Mapping[str, torch.Tensor]) -> Solved:
        """All weights at every replica; packed forms and reports at replica 0."""
        whole = Solved()
        for name, owner in owners.items():
            parameter = f"{name}.weight"
            weight = solved.weights[parameter] if owner == self.rank else torch.empty_like(tensors[parameter])
            weight = weight.to(self._device)
            dist.broadcast(weight, owner)
            whole.weights[parameter] = weight.cpu()
        for packed, reports in self._collect_at_first((solved.packed, solved.reports)):
            whole.packed |= packed
            whole.reports += reports
        return whole

    def merge_rows(self, rows: torch.Tensor) -> None:
        """Sum float32 [segments, …] at replica 0, in place; every row is zero but at one replica."""
        placed = rows.to(self._device)
        dist.reduce(placed, 0)
        rows.copy_(placed)

    def close(self) -> None:
        dist.destroy_process_group()

    def _collect_at_first(self, mine: Any) -> Sequence[Any]:
        gathered: list[Any] | None = [None] * self.size if self.rank == 0 else None
        dist.gather_object(mine, gathered, 0)
        return gathered or []


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host, int(port)
