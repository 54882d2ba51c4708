"""Copies beside computing: a device of threads computes and copies late, and every block has its input."""

import queue
import random
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import torch

from mbs_ray.cluster.activations.copies import Copy
from mbs_ray.cluster.activations.memory_tier import PinnedTier
from mbs_ray.cluster.activations.store import ActivationStore

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


class Stream:
    """Does what it is told in order, in a thread, and takes its time."""

    def __init__(self, seed: int) -> None:
        self._told: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._delays = random.Random(seed)
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def run(self, act: Callable[[], object]) -> threading.Event:
        done = threading.Event()
        self._told.put(act)
        self._told.put(done.set)
        return done

    def end(self) -> None:
        self._told.put(None)
        self._thread.join(10)
        assert not self._thread.is_alive()

    def _work(self) -> None:
        while (act := self._told.get()) is not None:
            time.sleep(self._delays.choice((0, 0, 0, 0.002)))
            act()


class Device:
    """Three streams like those of a GPU: what is computed, what comes up, what goes down."""

    def __init__(self, seed: int) -> None:
        self.computing, self.upward, self.downward = Stream(seed), Stream(seed + 1), Stream(seed + 2)
        # All are kept, or an address would be used again by a tensor of the host.
        self.memory: dict[int, torch.Tensor] = {}

    def empty(self, like: torch.Tensor) -> torch.Tensor:
        tensor = torch.full_like(like, float("nan"))
        self.memory[tensor.data_ptr()] = tensor
        return tensor

    def compute(self, function: Callable[[torch.Tensor], torch.Tensor], content: torch.Tensor) -> torch.Tensor:
        result = self.empty(content)
        self.computing.run(lambda: result.copy_(function(content)))
        return result

    def is_there(self, tensor: torch.Tensor) -> bool:
        return tensor.data_ptr() in self.memory

    def computed(self) -> "UnderWay":
        return UnderWay(self, self.computing.run(lambda: None))

    def up(self, source: torch.Tensor, after: Copy | None) -> tuple[torch.Tensor, "UnderWay"]:
        content = self.empty(source)
        if isinstance(after, UnderWay):
            self.upward.run(after.done.wait)
        return content, UnderWay(self, self.upward.run(lambda: content.copy_(source)))

    def down(self, source: torch.Tensor, into: torch.Tensor) -> "UnderWay":
        computed = self.computing.run(lambda: None)
        self.downward.run(computed.wait)
        return UnderWay(self, self.downward.run(lambda: into.copy_(source)))


class UnderWay:
    def __init__(self, device: Device, done: threading.Event) -> None:
        self.device, self.done = device, done

    def before_computing(self) -> None:
        self.device.computing.run(self.done.wait)

    def wait(self) -> None:
        assert self.done.wait(10)


@pytest.fixture(params=range(4))
def device(request: pytest.FixtureRequest) -> Iterator[Device]:
    device = Device(request.param)
    yield device
    for stream in (device.computing, device.upward, device.downward):
        stream.end()


def read(device: Device, store: ActivationStore, microbatch: int, block: int) -> torch.Tensor:
    content = store.get(microbatch, block, CUDA)
    device.computing.run(lambda: None).wait(10)
    return content


@pytest.mark.parametrize("every", [1, 2], ids=["all", "of-a-replica"])
def test_every_block_has_its_input_while_another_stage_sends(device: Device, every: int) -> None:
    store = ActivationStore(PinnedTier(device))
    inputs = {index: torch.randn(2 if index == 8 else 3, 5) for index in range(0, 9, every)}

    def send() -> None:
        for index, hidden in inputs.items():
            store.put(index, 0, hidden)

    sender = threading.Thread(target=send)
    sender.start()
    for block in range(4):
        for index in inputs:  # the moments are read, and then the output is computed
            store.get(index, block, CUDA)
        for index in inputs:
            hidden = store.get(index, block, CUDA)
            store.put(index, block + 1, device.compute(lambda x, block=block: 2 * x + block, hidden))
    sender.join(10)
    for index, hidden in inputs.items():
        expected = hidden
        for block in range(4):
            expected = 2 * expected + block
        assert torch.equal(read(device, store, index, 4), expected)
        store.pop(index)
        assert not store.holds(index)
    assert store.held() == 0


def test_the_next_one_comes_up_and_the_last_one_goes_down_while_the_device_computes(device: Device) -> None:
    store = ActivationStore(PinnedTier(device))
    for index in range(3):
        store.put(index, 0, torch.full((2, 2), float(index)))
    store.put(0, 1, device.compute(lambda x: x + 10, store.get(0, 0, CUDA)))
    hidden = store.get(1, 0, CUDA)
    busy = threading.Event()
    device.computing.run(busy.wait)
    store.put(1, 1, device.compute(lambda x: x + 10, hidden))
    device.upward.run(lambda: None).wait(10)
    # While block 0 is computed for microbatch 1 nobody waits: 2 is up.
    (ahead,) = [one for one in device.memory.values() if torch.equal(one, torch.full((2, 2), 2.0))]
    busy.set()
    assert store.get(2, 0, CUDA).data_ptr() == ahead.data_ptr()
    assert torch.equal(read(device, store, 0, 1), torch.full((2, 2), 10.0))
    assert torch.equal(read(device, store, 1, 1), torch.full((2, 2), 11.0))


def test_the_host_is_never_more_than_two_microbatches_ahead(device: Device) -> None:
    """Or the device's memory would fill with what waits to be computed, and to come down."""
    store, told = ActivationStore(PinnedTier(device)), []
    for index in range(9):
        store.put(index, 0, torch.full((2,), float(index)))
    gates = [threading.Event() for _ in range(9)]

    def tell() -> None:
        for index in range(9):
            hidden = store.get(index, 0, CUDA)
            told.append(index)
            device.computing.run(gates[index].wait)
            store.put(index, 1, device.compute(lambda x: x + 1, hidden))

    host = threading.Thread(target=tell)
    host.start()
    for index, gate in enumerate(gates):
        host.join(0.03)
        assert len(told) <= index + 2
        gate.set()
    host.join(10)
    assert told == list(range(9))
    assert torch.equal(read(device, store, 8, 1), torch.full((2,), 9.0))


def test_what_is_wanted_on_the_host_stays_there_once_it_has_come_down(device: Device) -> None:
    """Scoring takes all last states together: they are not to fill the device."""
    store = ActivationStore(PinnedTier(device))
    store.put(0, 0, torch.zeros(2))
    store.put(0, 1, device.compute(lambda x: x + 1, store.get(0, 0, CUDA)))
    known = len(device.memory)
    assert torch.equal(store.get(0, 1, CPU), torch.ones(2))
    assert len(device.memory) == known


def test_what_is_put_after_the_next_one_came_up_replaces_it(device: Device) -> None:
    store = ActivationStore(PinnedTier(device))
    store.put(0, 0, torch.zeros(2))
    store.put(1, 0, torch.zeros(2))
    store.get(0, 0, CUDA)
    device.upward.run(lambda: None).wait(10)
    store.put(1, 1, torch.ones(2))
    assert torch.equal(read(device, store, 1, 1), torch.ones(2))


def test_what_comes_from_the_host_waits_for_what_still_goes_down_to_its_place(device: Device) -> None:
    store = ActivationStore(PinnedTier(device))
    store.put(0, 0, torch.zeros(2))
    held = threading.Event()
    device.downward.run(held.wait)
    store.put(0, 1, device.compute(lambda x: x + 1, store.get(0, 0, CUDA)))
    threading.Timer(0.05, held.set).start()
    store.put(0, 2, torch.full((2,), 5.0))
    assert torch.equal(read(device, store, 0, 2), torch.full((2,), 5.0))


def test_memory_is_given_back_once_nothing_is_copied(device: Device) -> None:
    store = ActivationStore(PinnedTier(device))
    for index in range(2):
        store.put(index, 0, torch.zeros(2))
    store.put(0, 1, device.compute(lambda x: x + 1, store.get(0, 0, CUDA)))
    held = threading.Event()
    device.upward.run(held.wait)
    device.downward.run(held.wait)
    store.get(0, 1, CUDA)
    closing = threading.Thread(target=store.close)
    closing.start()
    closing.join(0.05)
    assert closing.is_alive()
    held.set()
    closing.join(10)
    assert not closing.is_alive()
    assert store.held() == 0


def test_memory_comes_from_the_accelerator(device: Device) -> None:
    tier = PinnedTier(device)
    tier.keep(0, torch.ones(3))
    assert tier._held[0].is_pinned() == torch.cuda.is_available()
