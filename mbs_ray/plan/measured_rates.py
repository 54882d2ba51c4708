"""Rates measured with the model's own shapes and the real code, in less than a minute."""

import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from mbs_ray.cluster.activations.host_memory import return_large_tensors
from mbs_ray.compression.device import exact_forward, forward_device
from mbs_ray.evaluation.scoring import score
from mbs_ray.methods import Method, Moment, Statistic
from mbs_ray.methods.factored import Factored
from mbs_ray.model.block_files import write_block
from mbs_ray.model.decoder import Decoder
from mbs_ray.model.head import VOCABULARY_CHUNK
from mbs_ray.plan.expert_work import first_mixture
from mbs_ray.plan.measured_experts import measure_experts
from mbs_ray.plan.meta_checkpoint import RandomOutline
from mbs_ray.plan.planned_work import PlannedRun, PlannedWork, TokenBatches
from mbs_ray.plan.rates import Rates
from mbs_ray.plan.stage_memory import inputs_of
from mbs_ray.plan.stage_time import forward_seconds, products_of

#: Columns of the factor and the solved linear that are timed, rows of the latter, bytes of the file.
_COLUMNS = {"cpu": 4096, "cuda": 16384}
_ROWS = 2048
_FILE_BYTES = 256 * 2**20


def measure_rates(works: Sequence[PlannedWork], assumed: Rates, folder: Path, threads: int | None = None) -> Rates:
    """Measure this process's device with the largest microbatch of the works, and the disk of ``folder``.

    Rates that cannot be measured here keep their assumed value. Needs the memory of one block and its largest moment.
    """
    device = forward_device()
    return_large_tensors()
    work = max(works, key=lambda one: max(batches.rows * batches.length for batches in one.batches))
    batches = max(work.batches, key=lambda one: one.rows * one.length)
    with torch.inference_mode(), exact_forward(threads):
        timing = _Timing(device)
        rates = replace(assumed, scores=float("inf"), solve={})
        rates = replace(rates, head=_head(work.decoder, batches, timing))
        runs = [one for one in works if isinstance(one, PlannedRun)]
        methods = {one.method.label: one.method for one in runs}
        full = any(one.statistic is Statistic.FULL for one in runs)
        if full:
            rates = replace(rates, moments=_moments(work.decoder, batches, timing))
        rates = _forward(work.decoder, batches, full, rates, timing)
        rates = _solvers(work.decoder, methods.values(), rates, timing)
        if device.type == "cuda":
            rates = _links(work.decoder, batches, rates, timing)
        write, read = _disk(work.decoder, folder)
    return replace(rates, write=write, read=read, source=f"measured on {_name(device)}")


class _Timing:
    """Timer of a call, in seconds: the median of some repeats, after one call that warms up."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __call__(self, call: Callable[[], Any], repeats: int = 1) -> float:
        call()
        taken = []
        for _ in range(repeats):
            self._wait()
            begun = time.monotonic()
            call()
            self._wait()
            taken.append(time.monotonic() - begun)
        return sorted(taken)[len(taken) // 2]

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


class _Random(Decoder):
    """Decoder with random weights on the device and at most one chunk of the vocabulary, read once."""

    def __init__(self, meta_checkpoint: Decoder, device: torch.device) -> None:
        checkpoint = meta_checkpoint.checkpoint
        random = RandomOutline(str(checkpoint.folder), checkpoint.config, meta_checkpoint.stored_dtype)
        self._held: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor | None]] = {}
        super().__init__(random, meta_checkpoint.compute_dtype, device.type)

    @property
    def vocabulary(self) -> int:
        return min(VOCABULARY_CHUNK, super().vocabulary)

    def head_rows(self, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        if (start, stop) not in self._held:
            self._held[start, stop] = super().head_rows(start, stop)
        return self._held[start, stop]


def _forward(decoder: Decoder, batches: TokenBatches, full: bool, rates: Rates, timing: _Timing) -> Rates:
    """Measure the forward of a block, one with experts if there is any, and what its experts do besides."""
    real, index = _Random(decoder, timing.device), first_mixture(decoder)
    tensors = real.read_block(index)
    block = real.load_block(index, tensors)
    hidden = torch.randn(batches.rows, batches.length, decoder.checkpoint.hidden_size, dtype=decoder.compute_dtype)
    hidden = hidden.to(timing.device)
    seconds = timing(lambda: real.run_block(block, index, hidden), repeats=3)
    one = TokenBatches(batches.rows, batches.length, batches.rows)
    rates = replace(rates, forward=forward_seconds(decoder, index, one, replace(rates, forward=1.0)) / seconds)
    if not decoder.mixtures(index):
        return rates
    return measure_experts(real, block, index, tensors, hidden.flatten(0, 1), full, rates, timing)


def _head(decoder: Decoder, batches: TokenBatches, timing: _Timing) -> float:
    """Measure the scoring of one microbatch with the first rows of the vocabulary, in operations per second."""
    real = _Random(decoder, timing.device)
    length = min(batches.length, 512)
    hidden = torch.randn(1, length, decoder.checkpoint.hidden_size, dtype=decoder.compute_dtype)
    token_ids = torch.zeros(1, length, dtype=torch.int64)
    seconds = timing(lambda: score(real, [(hidden, token_ids)]), repeats=3)
    return 2.0 * real.vocabulary * real.width * (length - 1) / seconds


def _moments(decoder: Decoder, batches: TokenBatches, timing: _Timing) -> float:
    """Measure adding to the moment at the input with the most columns, where most of the time is spent."""
    columns = max(columns for columns, _ in inputs_of(decoder, 0))
    tokens = batches.rows * batches.length
    inputs = torch.randn(tokens, columns, dtype=decoder.compute_dtype).to(timing.device)
    moment = Moment.zeros(columns, Statistic.FULL, device=timing.device)
    return float(columns) ** 2 * tokens / timing(lambda: moment.accumulate(inputs))


def _solvers(decoder: Decoder, methods: Iterable[Method], rates: Rates, timing: _Timing) -> Rates:
    """Measure the seconds that each method takes besides factor and large products: per column and per weight."""
    columns = min(max(columns for columns, _ in inputs_of(decoder, 0)), _COLUMNS[timing.device.type])
    moment = Moment.zeros(columns, Statistic.FULL, device=timing.device)
    moment.add(torch.randn(columns, columns, device=timing.device))
    diagonal = Moment(Statistic.DIAGONAL, columns, moment.tokens, moment.diagonal().clone())
    given = {Statistic.NONE: None, Statistic.DIAGONAL: diagonal, Statistic.FULL: moment}
    rates = replace(rates, product=2 * float(columns) ** 2 * _ROWS / timing(partial(_product, moment.sum)))
    solve = {}
    for method in methods:
        options: dict[str, Any] = {}
        if isinstance(method, Factored):
            seconds = timing(partial(method.prepare, moment))
            rates = replace(rates, factor=float(columns) ** 3 / 3 / seconds)
            options = {"factor": method.prepare(moment)}
        # Besides the large products, a column of a linear costs a constant plus a share for each of its rows: linears
        # of two heights give both.
        taken = []
        for rows in (_ROWS // 16, _ROWS):
            weight = (torch.randn(rows, columns, device=timing.device) * 0.02).to(decoder.stored_dtype)
            seconds = timing(partial(method.compress, weight, given[method.statistic], **options))
            products = products_of(method) * float(rows) * columns**2 / rates.product
            taken.append(max(seconds - products, 0.0) / columns)
        of_weight = max(taken[1] - taken[0], 0.0) / (_ROWS - _ROWS // 16)
        solve[method.label] = (max(taken[0] - of_weight * (_ROWS // 16), 0.0), of_weight)
    return replace(rates, solve=solve)


def _product(square: torch.Tensor) -> torch.Tensor:
    return square[:_ROWS] @ square


def _links(decoder: Decoder, batches: TokenBatches, rates: Rates, timing: _Timing) -> Rates:
    hidden = torch.empty(batches.rows, batches.length, decoder.checkpoint.hidden_size, dtype=decoder.compute_dtype)
    pinned, placed = hidden.pin_memory(), hidden.to(timing.device)
    return replace(
        rates,
        link=hidden.nbytes / timing(lambda: pinned.to(timing.device), repeats=3),
        upload=hidden.nbytes / timing(lambda: hidden.to(timing.device), repeats=3),
        download=hidden.nbytes / timing(placed.cpu, repeats=3),
    )


def _disk(decoder: Decoder, folder: Path) -> tuple[float, float]:
    """Measure bytes per second written to a block's file, and read from it past the page cache."""
    width = decoder.checkpoint.hidden_size
    rows = max(1, min(_FILE_BYTES, 12 * width**2) // (4 * width))
    tensors = {"weight": torch.randn(rows, width)}
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="mbs-plan-", dir=folder) as scratch:
        begun = time.monotonic()
        path = write_block(Path(scratch), 0, tensors)
        written = time.monotonic() - begun
        with path.open("rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            begun = time.monotonic()
            file.readinto(bytearray(path.stat().st_size))
            read = time.monotonic() - begun
        size = path.stat().st_size
    return size / written, size / read


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name()
    return f"{torch.get_num_threads()} CPU threads"
