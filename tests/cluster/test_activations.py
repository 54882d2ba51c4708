"""The activation store: waits for what is under way, and never gives a block another block's input."""

import threading

import pytest
import torch

from mbs_ray.cluster.activations import ActivationStore, RunAbandonedError

CPU = torch.device("cpu")


def test_a_microbatch_comes_back_as_it_was_put_for_its_block_only() -> None:
    store = ActivationStore()
    hidden = torch.randn(2, 3, 4)
    store.put(7, 5, hidden)
    assert torch.equal(store.get(7, 5, CPU), hidden)
    with pytest.raises(RuntimeError, match="input of block 5, not of block 6"):
        store.get(7, 6, CPU)


def test_what_is_put_is_a_copy_and_its_memory_is_used_again() -> None:
    store = ActivationStore()
    hidden = torch.randn(2, 3, 4)
    store.put(0, 0, hidden)
    place = store.get(0, 0, CPU).data_ptr()
    expected = hidden + 1
    hidden.add_(1)
    store.put(0, 1, hidden)
    hidden.zero_()
    assert torch.equal(store.get(0, 1, CPU), expected)
    assert store.get(0, 1, CPU).data_ptr() == place


def test_get_waits_until_another_thread_has_put() -> None:
    store = ActivationStore()
    seen: list[torch.Tensor] = []
    reader = threading.Thread(target=lambda: seen.append(store.get(3, 1, CPU)))
    reader.start()
    store.put(2, 1, torch.zeros(1))
    assert reader.is_alive()
    store.put(3, 1, torch.ones(1))
    reader.join(timeout=10)
    assert torch.equal(seen[0], torch.ones(1))


def test_giving_up_ends_every_wait() -> None:
    store = ActivationStore()
    raised: list[BaseException] = []

    def wait() -> None:
        try:
            store.get(0, 0, CPU)
        except RunAbandonedError as error:
            raised.append(error)

    reader = threading.Thread(target=wait)
    reader.start()
    store.abandon()
    reader.join(timeout=10)
    assert len(raised) == 1
