"""Throughput of the NVMe tier next to torch.save and torch.load and to the disk's own.

Each way writes microbatches of hidden states in place, reads them all, and does both in turn (read j, write j), as a
stage does for every block. ``python benchmarks/engine/activations.py FOLDER``, the folder on the disk in question.
"""

import argparse
import mmap
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch

from mbs_ray.cluster.activations.aio_op import load_aio
from mbs_ray.cluster.activations.host_memory import return_large_tensors
from mbs_ray.cluster.activations.memory_tier import MemoryTier
from mbs_ray.cluster.activations.nvme_tier import NvmeTier
from mbs_ray.cluster.activations.store import ActivationStore

CPU = torch.device("cpu")
MIB = 2**20


class Way(Protocol):
    def write(self, index: int, hidden: torch.Tensor) -> None: ...
    def read(self, index: int) -> torch.Tensor: ...


class Store:
    """A tier as the stages use it."""

    def __init__(self, tier: Any) -> None:
        self.store = ActivationStore(tier)

    def write(self, index: int, hidden: torch.Tensor) -> None:
        self.store.put(index, 0, hidden)

    def read(self, index: int) -> torch.Tensor:
        return self.store.get(index, 0, CPU)


class TorchFiles:
    """torch.save and torch.load, one file per microbatch; ``cold``: on the disk, and not in the page cache."""

    def __init__(self, folder: Path, cold: bool) -> None:
        self._folder, self._cold = folder, cold

    def write(self, index: int, hidden: torch.Tensor) -> None:
        path = self._folder / f"{index}.pt"
        torch.save(hidden, path)
        if self._cold:
            forget(path)

    def read(self, index: int) -> torch.Tensor:
        path = self._folder / f"{index}.pt"
        hidden = torch.load(path, weights_only=True)
        if self._cold:
            forget(path)
        return hidden


class PlainFile:
    """pwrite and preadv of whole microbatches, past the page cache (O_DIRECT), one after the other."""

    def __init__(self, folder: Path, like: torch.Tensor) -> None:
        self._file = os.open(folder / "plain", os.O_RDWR | os.O_CREAT | os.O_DIRECT)
        self._memory = mmap.mmap(-1, like.nbytes)
        self._hidden = torch.frombuffer(self._memory, dtype=like.dtype).view(like.shape)

    def write(self, index: int, hidden: torch.Tensor) -> None:
        self._hidden.copy_(hidden)
        written = os.pwrite(self._file, self._memory, index * len(self._memory))
        assert written == len(self._memory)

    def read(self, index: int) -> torch.Tensor:
        read = os.preadv(self._file, [self._memory], index * len(self._memory))
        assert read == len(self._memory)
        return self._hidden.clone()


def forget(path: Path) -> None:
    """Bring a file to the disk and out of the page cache."""
    file = os.open(path, os.O_RDWR)
    os.fsync(file)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(file)


def timed(act: Callable[[], None]) -> float:
    begun = time.monotonic()
    act()
    return time.monotonic() - begun


def held() -> int:
    """Anonymous memory of this process in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def measure(way: Way, hidden: torch.Tensor, count: int, repeats: int) -> list[float]:
    """Median GB/s of writing, reading, and reading and writing in turn (bytes of both)."""

    def write() -> None:
        for index in range(count):
            way.write(index, hidden)

    def read() -> None:
        for index in range(count):
            assert way.read(index).shape == hidden.shape

    def both() -> None:
        for index in range(count):
            way.write(index, way.read(index))

    write()
    rates = []
    for act, share in ((write, 1), (read, 1), (both, 2)):
        seconds = statistics.median(timed(act) for _ in range(repeats))
        rates.append(share * count * hidden.nbytes / seconds / 1e9)
    return rates


def with_compute(store: ActivationStore, hidden: torch.Tensor, count: int, repeats: int, products: int) -> float:
    """Median seconds of a pass over all microbatches in which each is computed with."""
    weight = torch.eye(hidden.shape[-1])
    for index in range(count):
        store.put(index, 0, hidden)

    def step() -> None:
        for index in range(count):
            states = store.get(index, 0, CPU)
            for _ in range(products):
                states = states @ weight
            store.put(index, 0, states)

    return statistics.median(timed(step) for _ in range(repeats))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--microbatches", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=4096, help="in a microbatch")
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    hidden = torch.randn(1, arguments.tokens, arguments.hidden)
    count, repeats = arguments.microbatches, arguments.repeats
    module = load_aio()
    return_large_tensors()
    with tempfile.TemporaryDirectory(dir=arguments.folder.resolve()) as name:
        folder = Path(name)
        ways: dict[str, Callable[[], Any]] = {
            "NVMe tier": lambda: Store(NvmeTier(module, folder)),
            "disk alone: one O_DIRECT pwrite, preadv at a time": lambda: PlainFile(folder, hidden),
            "torch.save + fsync, torch.load from the disk": lambda: TorchFiles(folder, cold=True),
            "torch.save, torch.load in the page cache": lambda: TorchFiles(folder, cold=False),
        }
        print(f"{count} microbatches of {hidden.nbytes / MIB:.0f} MiB, float32, {arguments.threads} thread(s), "
              f"median of {repeats}; GB/s\n")  # fmt: skip
        print("| way | write | read | read and write in turn | memory held MiB |\n|---|---:|---:|---:|---:|")
        for what, make in ways.items():
            before = held()
            way = make()
            rates = measure(way, hidden, count, repeats)
            memory = (held() - before) / MIB
            if isinstance(way, Store):
                way.store.close()
            print(f"| {what} | {' | '.join(f'{rate:.2f}' for rate in rates)} | {memory:.0f} |", flush=True)
        print("\n| products of a microbatch with a square matrix | host tier s | NVMe tier s | longer by |")
        print("|---:|---:|---:|---:|")
        for products in (1, 2, 4):
            stores = ActivationStore(MemoryTier(CPU)), ActivationStore(NvmeTier(module, folder))
            host, nvme = (with_compute(store, hidden, count, repeats, products) for store in stores)
            stores[1].close()
            print(f"| {products} | {host:.2f} | {nvme:.2f} | {nvme / host - 1:.1%} |", flush=True)


if __name__ == "__main__":
    main()
