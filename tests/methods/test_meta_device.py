"""Methods on a GPU, without one: every tensor on one device, no wait for the device in a loop, few launches."""

from typing import Any

import pytest
import torch

from mbs_ray.methods import GPTQ, RTN, Magnitude, Method, Moment, SparseGPT, SparseGPTQ, Statistic, Wanda, kernel, obs
from mbs_ray.methods.leaf import LEAF
from tests.support.meta import META, HostReads, Launches

METHODS: list[Method] = [
    Magnitude(sparsity=0.5),
    RTN(bits=4, group_size=128),
    Wanda(sparsity=0.5),
    Wanda(pattern="2:4"),
    SparseGPT(sparsity=0.5),
    SparseGPT(sparsity=0.5, scope="row"),
    SparseGPT(pattern="2:4"),
    SparseGPT(pattern="4:8", keep_zeros=True),
    GPTQ(bits=4, group_size=128),
    GPTQ(bits=3, group_size=128, activation_order=True),
    GPTQ(bits=4, group_size=128, clip_search=True),
    SparseGPTQ(pattern="2:4", bits=4, group_size=128),
    SparseGPTQ(sparsity=0.5, bits=4, group_size=128),
    SparseGPT(pattern="2:4", refine=1),
    GPTQ(bits=3, group_size=128, activation_order=True, refine=2),
]


def counted(method: Method, rows: int, columns: int) -> tuple[int, int]:
    """How often the host would wait for the device, and kernels that would be launched, for one linear."""
    shape = () if method.statistic is Statistic.NONE else (columns,) * (2 if method.statistic is Statistic.FULL else 1)
    with HostReads() as host, Launches() as device:
        moment = Moment(method.statistic, columns, 1000, torch.empty(shape, device=META)) if shape else None
        compressed = method.compress(torch.empty(rows, columns, dtype=torch.bfloat16, device=META), moment)
    assert compressed.weight.device == META
    return len(host.reads) + device.waits, device.count


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.label)
def test_the_host_waits_as_often_for_a_large_linear_as_for_a_small_one(
    method: Method, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel, "can_compile", lambda device: False)
    small, _ = counted(method, 64, 256)
    assert small <= 16
    assert counted(method, 64, 1024)[0] == small
    assert counted(method, 256, 256)[0] == small


def test_a_wait_in_a_loop_is_seen() -> None:
    class Waiting(Wanda):
        def compress(self, weight: torch.Tensor, *others: Any) -> Any:
            assert all(bool(column.any()) for column in weight.unbind(1))
            return super().compress(weight, *others)

    waiting = Waiting(sparsity=0.5)
    assert counted(waiting, 64, 512)[0] - counted(waiting, 64, 256)[0] == 256


def test_a_tensor_on_another_device_is_seen() -> None:
    with HostReads(), pytest.raises(RuntimeError, match="device"):
        torch.empty(3, device=META) + torch.empty(3)


@pytest.mark.parametrize(
    ("method", "per_leaf", "per_unit"),
    [
        (SparseGPT(pattern="2:4"), 2, 0),
        (SparseGPT(sparsity=0.5), 2, 12),
        (GPTQ(bits=4, group_size=128), 2, 63),
        (GPTQ(bits=3, group_size=128, activation_order=True), 4, 0),
    ],
    ids=lambda value: getattr(value, "label", ""),
)
def test_a_leaf_takes_two_launches_and_128_columns_a_mask_or_a_grid(
    method: Method, per_leaf: int, per_unit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel, and a product that takes its changes to later columns; in another order two look-ups of their grids."""
    monkeypatch.setattr(kernel, "can_compile", lambda device: True)
    monkeypatch.setattr(kernel, "_compiled", lambda _: lambda work, *_: work.zero_())
    _, whole = counted(method, 64, 2048)
    monkeypatch.setattr(obs.Halving, "solve", lambda *_: None)
    _, around = counted(method, 64, 2048)
    assert 2 * 2048 // LEAF - 1 <= whole - around <= per_leaf * 2048 // LEAF + per_unit * 2048 // 128
