"""A block as a stage finds it on the disk."""

import time
from dataclasses import dataclass

import torch

from mbs_ray.cluster.job import Job
from mbs_ray.model.block_files import read_block
from mbs_ray.model.decoder import Decoder


@dataclass(frozen=True)
class StoredBlock:
    """A block as it lies on the disk: dense, or as the run directory holds it ``finished``."""

    tensors: dict[str, torch.Tensor]
    finished: bool
    seconds: float


def read_stored(job: Job, decoder: Decoder, index: int) -> StoredBlock:
    """Read a block in another thread while the one before is computed."""
    begun = time.monotonic()
    done = None if job.method is None else read_block(job.blocks_folder, index)
    if done is None:
        return read_dense(decoder, index)
    return StoredBlock(decoder.from_stored(index, done), True, time.monotonic() - begun)


def read_dense(decoder: Decoder, index: int) -> StoredBlock:
    begun = time.monotonic()
    return StoredBlock(decoder.read_block(index), False, time.monotonic() - begun)
