"""What the replicas of a stage exchange: whether to continue, sums of moments, solved weights, scores."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from mbs_ray.cluster.activations.store import RunAbandonedError
from mbs_ray.cluster.stage.replica_store import proof, talk_through
from mbs_ray.compression.block_report import LinearReport
from mbs_ray.compression.collect import Collected
from mbs_ray.compression.solve import Solved
from mbs_ray.errors import Shortage, one_line
from mbs_ray.methods import Moment

#: A replica waits for the slowest solver of a block; the driver notices one that died or hangs long before.
_WAIT_SECONDS = 24 * 3600
#: A reduction needs a buffer as large as what is reduced, and the largest moment has 12 GiB.
_ELEMENTS_AT_ONCE = 2**24


class ReplicaLostError(Exception):
    """Another replica of this stage is gone; the whole group must be rebuilt."""


class ReplicaMemoryError(ReplicaLostError):
    """This replica had no memory left amid an exchange; the others wait in it, so that the group must be rebuilt."""

    def __init__(self, message: str, shortage: Shortage) -> None:
        super().__init__(message, shortage)
        self.shortage = shortage

    def __str__(self) -> str:
        return str(self.args[0])


class ReplicaGaveUpError(RunAbandonedError):
    """Another replica of this stage could not continue the run, and reports the reason itself."""


class StageReplicas(Protocol):
    """The actors that hold the same blocks, as one of them, number ``rank`` of ``size``, sees them."""

    rank: int
    size: int

    def agree(self, yes: bool = True) -> bool:
        """Wait for all replicas, and return whether all say yes; all of them call this in the same order.

        Raises :class:`ReplicaGaveUpError` where one came by :meth:`give_up`, :class:`ReplicaLostError` where one died.
        """

    def give_up(self) -> None:
        """Meet the others at their next :meth:`agree`, and tell them that this one cannot continue the run."""

    def gather(self, collected: Collected, owners: Mapping[str, int]) -> Collected:
        """Sum what all replicas collected at the owner of each linear; what others own is dropped here."""

    def share(self, solved: Solved, owners: Mapping[str, int], tensors: Mapping[str, Tensor]) -> Solved:
        """Give every replica the weights of all owners, and replica 0 their packed forms and reports.

        ``tensors`` have the shapes and types of the weights, by the names of their parameters.
        """

    def add_up(self, sums: Tensor) -> None:
        """Sum a tensor in host memory at replica 0, in place; an element that only one replica sets keeps its bits."""

    def total(self, counts: Tensor) -> Tensor:
        """Sum integers in host memory over all replicas, for each of them."""


class SingleReplica:
    """The only replica of its stage: it agrees with itself and has everything."""

    rank = 0
    size = 1

    def agree(self, yes: bool = True) -> bool:
        return yes

    def give_up(self) -> None:
        """Do nothing: there is nobody to tell."""

    def gather(self, collected: Collected, owners: Mapping[str, int]) -> Collected:
        return collected

    def share(self, solved: Solved, owners: Mapping[str, int], tensors: Mapping[str, Tensor]) -> Solved:
        return solved

    def add_up(self, sums: Tensor) -> None:
        """Leave the sums as they are: they are complete already."""

    def total(self, counts: Tensor) -> Tensor:
        return counts


class ReplicaGroup:
    """The process group of a stage of several replicas (gloo, and nccl for what lies on CUDA).

    ``store`` is where they find each other: the first replica serves it, see
    :func:`~mbs_ray.cluster.stage.replica_store.hosted_store`, the others join it. Raises :class:`ReplicaLostError`
    where one of them does not know the ``secret``. What they exchange is tensors and JSON: nothing is unpickled.
    """

    def __init__(self, rank: int, size: int, store: dist.Store, secret: str, node_ip: str, device: str = "cpu") -> None:
        self.rank, self.size = rank, size
        self._device = torch.device(device)
        talk_through(node_ip)
        with _peers():
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if self._device.type == "cuda" else "gloo",
                store=store,
                rank=rank,
                world_size=size,
                timeout=timedelta(seconds=_WAIT_SECONDS),
            )
            self._refuse_strangers(secret)

    def agree(self, yes: bool = True) -> bool:
        going_on, agreed = self._meet(True, yes)
        if not going_on:
            raise ReplicaGaveUpError
        return agreed

    def give_up(self) -> None:
        self._meet(False, False)

    def gather(self, collected: Collected, owners: Mapping[str, int]) -> Collected:
        own = Collected()
        with _peers():
            for group in collected.inputs():
                moment, owner = collected.moments[group[0]], owners[group[0]]
                _reduce_large(moment.sum, owner)
                energies = [float(collected.energies.get(name, 0.0)) for name in group]
                counts = torch.tensor([moment.tokens, *energies], dtype=torch.float64)
                dist.reduce(counts, owner)
                for name in group:
                    del collected.moments[name]
                if owner == self.rank:
                    whole = Moment(moment.statistic, moment.columns, int(counts[0]), moment.sum)
                    own.moments |= dict.fromkeys(group, whole)
                    own.energies |= dict(zip(group, counts[1:], strict=True))
                del moment
            for name in list(collected.drifts):
                drift = collected.drifts.pop(name)
                _reduce_large(drift.sum, owners[name])
                if owners[name] == self.rank:
                    own.drifts[name] = drift
        if collected.held is not None:
            own.held = self.gather(collected.held, owners)
        if collected.overall is not None:
            own.overall, own.least = self._spread(collected.overall, owners), collected.least
        return own

    def _spread(self, collected: Collected, owners: Mapping[str, int]) -> Collected:
        """Sum moments that linears of several owners share, for each of them; what none of its own needs is dropped."""
        own = Collected()
        with _peers():
            for group in collected.inputs():
                moment = collected.moments[group[0]]
                for part in moment.sum.view(-1).split(_ELEMENTS_AT_ONCE):
                    dist.all_reduce(part)
                counts = torch.tensor([moment.tokens, *(float(collected.energies[name]) for name in group)])
                counts = counts.double()
                dist.all_reduce(counts)
                whole = Moment(moment.statistic, moment.columns, int(counts[0]), moment.sum)
                for name, energy in zip(group, counts[1:], strict=True):
                    if owners[name] == self.rank:
                        own.moments[name], own.energies[name] = whole, energy
        return own

    def share(self, solved: Solved, owners: Mapping[str, int], tensors: Mapping[str, Tensor]) -> Solved:
        whole = Solved()
        with _peers():
            for name, owner in owners.items():
                parameter = f"{name}.weight"
                weight = solved.weights[parameter] if owner == self.rank else torch.empty_like(tensors[parameter])
                placed = weight.to(self._device).contiguous()
                # As bytes: not every backend knows every type.
                dist.broadcast(placed.view(torch.uint8), owner)
                whole.weights[parameter] = placed.cpu()
            self._bring_to_first(solved, whole)
        return whole

    def add_up(self, sums: Tensor) -> None:
        with _peers():
            dist.reduce(sums, 0)

    def total(self, counts: Tensor) -> Tensor:
        summed = counts.clone()
        with _peers():
            dist.all_reduce(summed)
        return summed

    def _refuse_strangers(self, secret: str) -> None:
        """Have every replica prove that it was given the secret, as a process that only found the port was not."""
        proofs = [torch.frombuffer(bytearray(proof(secret, str(rank))), dtype=torch.uint8) for rank in range(self.size)]
        shown = [torch.empty_like(one) for one in proofs]
        dist.all_gather(shown, proofs[self.rank])
        for rank, (own, other) in enumerate(zip(proofs, shown, strict=True)):
            if not torch.equal(own, other):
                raise ReplicaLostError(f"what answers as replica {rank + 1} of this stage is none of it")

    def _meet(self, going_on: bool, yes: bool) -> tuple[bool, bool]:
        # A round: before they exchange anything all replicas come here, in the same order, each with two flags; the
        # minimum is their answer. One that fails alone enters the round that is next with going_on = 0, so that all
        # leave the run together, and none waits in an exchange for a replica that never comes.
        flags = torch.tensor([going_on, yes], dtype=torch.int32)
        with _peers():
            dist.all_reduce(flags, dist.ReduceOp.MIN)
        return bool(flags[0]), bool(flags[1])

    def _bring_to_first(self, solved: Solved, whole: Solved) -> None:
        """Bring reports and packed forms to replica 0; tensors one by one, so that none is held twice."""
        if self.rank:
            _send_facts(solved)
            for parts in solved.packed.values():
                for tensor in parts.values():
                    dist.send(_bytes(tensor.contiguous()), 0)
            return
        whole.reports += solved.reports
        whole.packed |= solved.packed
        for source in range(1, self.size):
            reports, parts_of = _received_facts(source)
            whole.reports += reports
            for name, parts in parts_of.items():
                whole.packed[name] = {}
                for part, (shape, dtype) in parts.items():
                    received = torch.empty(shape, dtype=getattr(torch, dtype))
                    dist.recv(_bytes(received), source)
                    whole.packed[name][part] = received


def _reduce_large(sums: Tensor, owner: int) -> None:
    for part in sums.view(-1).split(_ELEMENTS_AT_ONCE):
        dist.reduce(part, owner)


def _send_facts(solved: Solved) -> None:
    """Send replica 0 the reports, and names, shapes and types of the packed parts, as JSON: its length, its bytes."""
    shapes = {
        name: {part: (list(tensor.shape), str(tensor.dtype).removeprefix("torch.")) for part, tensor in parts.items()}
        for name, parts in solved.packed.items()
    }
    content = json.dumps({"reports": [asdict(one) for one in solved.reports], "shapes": shapes}).encode()
    dist.send(torch.tensor([len(content)]), 0)
    dist.send(torch.frombuffer(bytearray(content), dtype=torch.uint8), 0)


def _received_facts(source: int) -> tuple[list[LinearReport], dict[str, dict[str, Any]]]:
    size = torch.empty(1, dtype=torch.int64)
    dist.recv(size, source)
    content = torch.empty(int(size), dtype=torch.uint8)
    dist.recv(content, source)
    facts = json.loads(content.numpy().tobytes())
    return [LinearReport(**one) for one in facts["reports"]], facts["shapes"]


@contextmanager
def _peers() -> Iterator[None]:
    """Turn an error of an exchange into :class:`ReplicaLostError`, and say whose it is."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        raise _in_exchange(error) from error


def _in_exchange(error: RuntimeError | MemoryError) -> ReplicaLostError:
    """Tell memory that this replica had not, and a device of its own that failed, from another one that is gone."""
    said = one_line(error)
    if isinstance(error, MemoryError) or "DefaultCPUAllocator" in said:
        return ReplicaMemoryError(f"no host memory left to exchange with other replicas ({said})", "host memory")
    # nccl says it in an error of its own.
    if isinstance(error, torch.OutOfMemoryError) or "out of memory" in said:
        return ReplicaMemoryError(f"no device memory left to exchange with other replicas ({said})", "device memory")
    if isinstance(error, torch.AcceleratorError):
        return ReplicaLostError(f"this replica's device failed ({said})")
    return ReplicaLostError(f"another replica of this stage is gone ({said})")


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.view(-1).view(torch.uint8)
