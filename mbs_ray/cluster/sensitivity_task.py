"""Sensitivity of languages on one device of the cluster, before the stages take the devices."""

from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from ray.exceptions import GetTimeoutError, RayTaskError

from mbs_ray.cluster.activations.host_memory import host_memory
from mbs_ray.compression.device import exact_forward, forward_device
from mbs_ray.compression.sensitivity import Sensitivity, measure_sensitivity
from mbs_ray.errors import InputError
from mbs_ray.model.checkpoint import Checkpoint
from mbs_ray.model.decoder import Decoder
from mbs_ray.run.numerics import Numerics
from mbs_ray.text.ray_deaths import DEATHS, fetched, stage_died
from mbs_ray.text.segment_file import SegmentSet

_TIMES_TOLD = 100
#: It tells of each hundredth part of its work; one that says nothing for so long hangs.
SILENCE_SECONDS = 4 * 3600.0


def sensitivity_on_cluster(
    model: Path,
    compute_dtype: str,
    microbatch: int,
    texts: Mapping[str, Path],
    segments: int,
    numerics: Numerics,
    notify: Callable[[int, int], None],
) -> Sensitivity:
    """Measure sensitivities on the first ``segments`` of every language's file, in a process on the cluster.

    See :func:`~mbs_ray.compression.sensitivity.measure_sensitivity`. Computes in float32 where ``compute_dtype`` is
    float16, whose gradients vanish. ``notify`` gets (done, total). Raises :class:`InputError` as that function does,
    and where the inputs of all blocks do not fit in host memory, :class:`StageDiedError` where the process is killed.
    """
    task: Any = ray.remote(measure_files).options(
        num_cpus=numerics.threads,
        num_gpus=1 if numerics.device == "cuda" else 0,
        num_returns="streaming",
        max_retries=0,
    )
    dtype = "float32" if compute_dtype == "float16" else compute_dtype
    try:
        for told in _answers(task.remote(model, dtype, microbatch, dict(texts), segments, numerics)):
            if isinstance(told, dict):
                return told
            notify(*told)
    except (*DEATHS, GetTimeoutError) as error:
        cure = "; the same command begins it anew; where memory is short, take fewer sensitivity_segments"
        raise stage_died("the process that measures sensitivities died", error, cure) from error
    except RayTaskError as error:
        if isinstance(error.cause, InputError):
            raise error.cause from error
        raise
    raise RuntimeError("the task that measures sensitivity ended without a result")


def _answers(task: Any) -> Iterator[Any]:
    """Yield what a streaming task yields. Raises GetTimeoutError where it says nothing for a long time."""
    while True:
        ready, _ = ray.wait([task], timeout=SILENCE_SECONDS)
        if not ready:
            ray.cancel(task, force=True)
            raise GetTimeoutError(f"it has said nothing for {SILENCE_SECONDS:.0f} s")
        try:
            reference = next(task)
        except StopIteration:
            return
        yield fetched(reference)


def measure_files(
    model: Path, compute_dtype: str, microbatch: int, texts: Mapping[str, Path], segments: int, numerics: Numerics
) -> Iterator[tuple[int, int] | Sensitivity]:
    """Yield (done, total) about a hundred times, then the sensitivities; computes on the device of this process."""
    token_ids = {}
    for language, path in texts.items():
        rows = SegmentSet.open(path)
        ids = rows.token_ids(0, min(segments, len(rows)))
        token_ids[language] = torch.from_numpy(ids.astype(np.int64))
    decoder = Decoder(Checkpoint(model), getattr(torch, compute_dtype), forward_device(numerics.device).type)
    _check_host_memory(decoder, sum(ids.numel() for ids in token_ids.values()))
    with exact_forward(numerics.threads):
        found = yield from _now_and_then(measure_sensitivity(decoder, token_ids, microbatch))
    yield found


def _check_host_memory(decoder: Decoder, tokens: int) -> None:
    width = decoder.checkpoint.hidden_size
    needed = decoder.blocks * tokens * width * decoder.compute_dtype.itemsize
    if needed > (free := host_memory().budget):
        raise InputError(
            f"sensitivities: inputs of all blocks need {needed / 2**30:.2f} GiB of host memory, "
            f"{free / 2**30:.2f} GiB are free; take fewer sensitivity_segments"
        )


def _now_and_then(
    steps: Generator[tuple[int, int], None, Sensitivity],
) -> Generator[tuple[int, int], None, Sensitivity]:
    told = -1
    while True:
        try:
            done, total = next(steps)
        except StopIteration as end:
            found: Sensitivity = end.value
            return found
        if (part := _TIMES_TOLD * done // total) > told:
            told = part
            yield done, total
