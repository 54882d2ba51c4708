"""The activation store: waits for what is under way, and never gives a block another block's input."""

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mbs_ray.cluster.activations.memory_tier import MemoryTier
from mbs_ray.cluster.activations.nvme_tier import NvmeTier
from mbs_ray.cluster.activations.store import ActivationStore, RunAbandonedError

CPU = torch.device("cpu")


@pytest.fixture(params=["host", "nvme"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ActivationStore:
    if request.param == "host":
        return ActivationStore(MemoryTier(CPU))
    return ActivationStore(NvmeTier(request.getfixturevalue("aio"), tmp_path))


def test_a_microbatch_comes_back_as_it_was_put_for_its_block_only(store: ActivationStore) -> None:
    hidden = torch.randn(2, 3, 4)
    store.put(7, 5, hidden)
    assert torch.equal(store.get(7, 5, CPU), hidden)
    with pytest.raises(RuntimeError, match="input of block 5, not of block 6"):
        store.get(7, 6, CPU)


def test_what_is_put_is_a_copy(store: ActivationStore) -> None:
    hidden = torch.randn(2, 3, 4)
    store.put(0, 0, hidden)
    expected = hidden + 1
    hidden.add_(1)
    store.put(0, 1, hidden)
    hidden.zero_()
    assert torch.equal(store.get(0, 1, CPU), expected)


def test_memory_of_a_microbatch_is_used_again() -> None:
    store = ActivationStore(MemoryTier(CPU))
    store.put(0, 0, torch.randn(2, 3, 4))
    place = store.get(0, 0, CPU).data_ptr()
    store.put(0, 1, torch.randn(2, 3, 4))
    assert store.get(0, 1, CPU).data_ptr() == place


def test_blocks_are_gone_through_in_place_while_another_thread_puts(store: ActivationStore) -> None:
    inputs = [torch.randn(3 if index % 7 else 2, 5, 8).bfloat16() for index in range(40)]

    def receive() -> None:
        with torch.no_grad():
            for index, hidden in enumerate(inputs):
                store.put(index, 0, hidden)

    receiver = threading.Thread(target=receive)
    receiver.start()
    with torch.inference_mode():
        for block in range(3):
            for index in range(40):
                store.get(index, block, CPU)
            for index in range(40):
                store.put(index, block + 1, store.get(index, block, CPU) + 1)
    receiver.join()
    for index, hidden in enumerate(inputs):
        assert torch.equal(store.get(index, 3, CPU), hidden + 1 + 1 + 1)
        store.pop(index)
    store.close()


def test_get_waits_until_another_thread_has_put(store: ActivationStore) -> None:
    seen: list[torch.Tensor] = []
    reader = threading.Thread(target=lambda: seen.append(store.get(3, 1, CPU)))
    reader.start()
    store.put(2, 1, torch.zeros(1))
    assert reader.is_alive()
    store.put(3, 1, torch.ones(1))
    reader.join(timeout=10)
    assert torch.equal(seen[0], torch.ones(1))


def test_giving_up_ends_every_wait(store: ActivationStore) -> None:
    raised = _raised_while_waiting(store, store.abandon)
    assert isinstance(raised, RunAbandonedError)


def test_what_cannot_be_stored_fails_where_the_run_waits_for_it_too(store: ActivationStore) -> None:
    class Refused(torch.Tensor):
        def detach(self) -> torch.Tensor:
            return torch.empty(3, device="meta")

    def put() -> None:
        with pytest.raises(NotImplementedError):
            store.put(0, 0, torch.ones(3).as_subclass(Refused))

    assert isinstance(_raised_while_waiting(store, put), NotImplementedError)


def test_a_closed_store_drops_what_comes_late(store: ActivationStore, tmp_path: Path) -> None:
    store.put(0, 0, torch.ones(3))
    store.close()
    store.put(1, 0, torch.ones(3))
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []


@pytest.mark.slow
def test_host_memory_of_a_cpu_stage_imports_no_deepspeed() -> None:
    script = (
        "import sys, torch; from mbs_ray.cluster.offload import AUTO, StoreMaker; "
        "StoreMaker(AUTO, 'host', 'cpu')().put(0, 0, torch.ones(3)); sys.exit('deepspeed' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], timeout=120).returncode == 0


def _raised_while_waiting(store: ActivationStore, act: Callable[[], None]) -> BaseException:
    raised: list[BaseException] = []

    def wait() -> None:
        try:
            store.get(0, 0, CPU)
        except Exception as error:
            raised.append(error)

    reader = threading.Thread(target=wait)
    reader.start()
    act()
    reader.join(timeout=10)
    assert len(raised) == 1
    return raised[0]
