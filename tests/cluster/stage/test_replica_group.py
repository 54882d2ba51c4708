"""How replicas find each other and what they exchange: on one address, with a secret, and nothing that is unpickled."""

import ast
import multiprocessing
import pickle
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import psutil
import pytest
import torch
import torch.distributed as dist

from mbs_ray.cluster.stage import replicas
from mbs_ray.cluster.stage.replica_store import StoreAddress, hosted_store, joined_store
from mbs_ray.cluster.stage.replicas import ReplicaGroup, ReplicaLostError, ReplicaMemoryError
from mbs_ray.compression.block_report import LinearReport
from mbs_ray.compression.solve import Solved

HERE = "127.0.0.1"
REPORT = LinearReport("b", 3, 2, 7, 0.1 + 0.2, None, 0.5, float("inf"), 0, 1e-300)
PACKED = {"b.weight": {"codes": torch.arange(6, dtype=torch.int32).view(3, 2), "scale": torch.ones(3).bfloat16()}}
Work = Callable[[ReplicaGroup], object]


def _join(rank: int, pipe: Connection, address: StoreAddress | None, secret: str | None, work: Work) -> None:
    """A replica in a process of its own; the first one hosts the store. It proves itself by ``secret``, if given."""
    store: dist.Store
    if address is None:
        address, store = hosted_store(HERE)
        pipe.send(address)
    else:
        store = joined_store(address)
    try:
        pipe.send(work(ReplicaGroup(rank, 2, store, secret or address.secret, HERE)))
    except Exception as error:
        pipe.send(error)


def together(works: tuple[Work, Work], secret: str | None = None) -> list[object]:
    """What both replicas of a group answer; ``secret`` is the second one's, in place of the real one."""
    context, answers = multiprocessing.get_context("fork"), []
    first, ours = context.Pipe()
    second, theirs = context.Pipe()
    processes = [context.Process(target=_join, args=(0, ours, None, None, works[0]))]
    processes[0].start()
    address: StoreAddress = first.recv()
    processes.append(context.Process(target=_join, args=(1, theirs, address, secret, works[1])))
    processes[1].start()
    for pipe in (first, second):
        answers.append(pipe.recv() if pipe.poll(120) else None)
    for process in processes:
        process.join(20)
        process.kill()
    return answers


def _share(group: ReplicaGroup) -> object:
    own = (
        Solved({"b.weight": torch.ones(3, 2)}, PACKED, [REPORT]) if group.rank else Solved({"a.weight": torch.ones(2)})
    )
    whole = group.share(own, {"a": 0, "b": 1}, {"a.weight": torch.ones(2), "b.weight": torch.ones(3, 2)})
    parts = {part: (one.dtype, one.tolist()) for part, one in whole.packed.get("b.weight", {}).items()}
    return sorted(whole.weights), whole.reports, parts


def test_reports_and_packed_forms_reach_the_first_replica_as_they_were() -> None:
    first, second = together((_share, _share))
    parts = {part: (one.dtype, one.tolist()) for part, one in PACKED["b.weight"].items()}
    assert first == (["a.weight", "b.weight"], [REPORT], parts)
    assert second == (["a.weight", "b.weight"], [], {})


def test_nothing_that_replicas_send_is_unpickled() -> None:
    source = Path(replicas.__file__).read_text(encoding="utf-8")
    called = {ast.unparse(node.func) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)}
    assert "dist.recv" in called
    assert not {name for name in called if "object" in name or "pickle" in name}


def test_the_store_listens_on_the_address_of_its_node_alone() -> None:
    address, store = hosted_store(HERE)
    listening = [one for one in psutil.Process().net_connections("tcp") if one.status == psutil.CONN_LISTEN]
    assert {one.laddr.ip for one in listening if one.laddr.port == address.port} == {HERE}
    assert len(address.secret) == 64 and address.secret != hosted_store(HERE)[0].secret
    # What a stranger can list does not give the secret away, and what it writes is nobody's.
    stranger = dist.TCPStore(HERE, address.port, is_master=False)
    store.set("key", "ours")
    stranger.set("key", "foreign")
    assert store.get("key") == b"ours" and joined_store(address).get("key") == b"ours"
    assert not any(address.secret in key for key in stranger.list_keys())


def _joined(group: ReplicaGroup) -> object:
    return "joined"


def test_who_found_the_keys_and_not_the_secret_is_refused() -> None:
    for answer in together((_joined, _joined), secret="guessed"):
        assert isinstance(answer, ReplicaLostError)
        assert "of this stage is none of it" in str(answer)


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried 12 GiB"),
            "device memory",
            "no device memory left",
        ),
        (
            dist.DistBackendError("NCCL error: unhandled\n'out of memory'"),
            "device memory",
            "no device memory",
        ),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 12 GB"), "host memory", "no host memory"),
        (MemoryError(), "host memory", "no host memory left to exchange with other replicas (MemoryError)"),
        (
            RuntimeError("[pair.cc:534] Connection closed by peer [10.0.0.2]:1"),
            None,
            "another replica of this stage is",
        ),
        (dist.DistNetworkError("The client socket has timed out"), None, "another replica of this stage is gone"),
    ],
)
def test_no_memory_is_not_another_replica_that_is_gone(error: Exception, kind: str | None, said: str) -> None:
    with pytest.raises(ReplicaLostError) as raised, replicas._peers():
        raise error
    assert said in str(raised.value) and "\n" not in str(raised.value)
    assert isinstance(raised.value, ReplicaMemoryError) is (kind is not None)
    # Through Ray it comes as a copy.
    copied = pickle.loads(pickle.dumps(raised.value))
    assert getattr(copied, "shortage", None) == kind and str(copied) == str(raised.value)


def test_a_device_of_its_own_that_failed_is_said() -> None:
    with pytest.raises(ReplicaLostError, match=r"this replica's device failed \(CUDA error"), replicas._peers():
        raise torch.AcceleratorError("CUDA error: device-side assert triggered")
