"""Bytes of disk that the results of a sweep take."""

from collections.abc import Iterable

import torch

from mbs_ray.methods import Method
from mbs_ray.model.decoder import Decoder
from mbs_ray.plan.planned_work import PlannedRun, PlannedWork
from mbs_ray.plan.stage_memory import block_bytes


def blocks_bytes(decoder: Decoder) -> int:
    return sum(block_bytes(decoder, index) for index in range(decoder.blocks))


def _outside_bytes(decoder: Decoder) -> int:
    infos = (decoder.checkpoint.tensors[name] for name in decoder.outside_tensors())
    return sum(torch.Size(info.shape).numel() * info.dtype.itemsize for info in infos)


def packed_bytes(decoder: Decoder, method: Method | None) -> int:
    """Compute the bytes of packed blocks (integers, scales and zero points of linears); 0 if nothing is quantized."""
    bits = getattr(method, "bits", None)
    if bits is None:
        return 0
    group_size = getattr(method, "group_size", None)
    total = 0
    for index in range(decoder.blocks):
        for rows, columns in decoder.linears(index).values():
            groups = rows * (columns // group_size if group_size else 1)
            total += rows * (-(-columns * bits // 32) * 4) + groups * decoder.stored_dtype.itemsize + groups * bits // 8
    # A block's packed file also holds the tensors that the method does not change.
    linears = sum(
        rows * columns for index in range(decoder.blocks) for rows, columns in decoder.linears(index).values()
    )
    return total + blocks_bytes(decoder) - linears * decoder.stored_dtype.itemsize


def kept_bytes(work: PlannedWork) -> int:
    """Compute the bytes a run leaves: scores of tokens and, if kept, its blocks, a second time packed if quantized."""
    scores = 24 * sum(one.tokens for one in work.evaluation)
    if not isinstance(work, PlannedRun) or work.keep == "metrics":
        return scores
    return blocks_bytes(work.decoder) + packed_bytes(work.decoder, work.method) + scores


def results_bytes(works: Iterable[PlannedWork], in_flight: int) -> int:
    """Compute the bytes of all runs at their end, and of the blocks of ``in_flight`` unkept runs.

    Untouched tensors count once for each model.
    """
    works = list(works)
    outside = {id(work.decoder): _outside_bytes(work.decoder) for work in works}
    passing = sorted(
        (
            blocks_bytes(work.decoder) + packed_bytes(work.decoder, work.method)
            for work in works
            if isinstance(work, PlannedRun) and work.keep == "metrics"
        ),
        reverse=True,
    )
    return sum(map(kept_bytes, works)) + sum(outside.values()) + sum(passing[:in_flight])
