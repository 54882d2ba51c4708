"""One pass over a checkpoint before a job: are all weights finite, and what is its fingerprint?"""

import hashlib
import json
import os
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import torch
from safetensors import safe_open

from mbs_ray.errors import InputError
from mbs_ray.files import appearing, own_content, read_json
from mbs_ray.model.checkpoint import Checkpoint, TensorInfo
from mbs_ray.model.checkpoint_files import CONFIG

_CURE = "remove it, what it holds is found again"
_CHUNK_BYTES = 64 * 2**20
#: A piece each; more threads than these wait for the disk.
_MOST_THREADS = 8
_LOOK_SECONDS = 0.05


def fingerprint(
    checkpoint: Checkpoint,
    parameters: Collection[str],
    cache: Path,
    progress: Callable[[int, int], None] | None = None,
) -> str:
    """sha256 of config and all tensors (names, types, shapes, bytes), however they are sharded, whoever wrote them.

    Reads every tensor once in pieces of 64 MiB and raises :class:`InputError` naming the first of ``parameters``
    (stored names) that holds NaN or infinity; a stored mask may well hold -inf. The answer is kept under ``cache``
    for files whose size and time of change are the same. ``progress`` is called with bytes done and bytes in all.
    """
    files = [checkpoint.folder / CONFIG, *checkpoint.files]
    states = [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    key = hashlib.sha256(json.dumps(["tensors apart", states]).encode()).hexdigest()
    stored = cache / f"{key}.json"
    if stored.is_file():
        with own_content(stored, _CURE):
            return str(read_json(stored, _CURE)["fingerprint"])
    result = _scan(checkpoint, parameters, progress)
    with appearing(stored) as unfinished:
        unfinished.write_text(json.dumps({"fingerprint": result, "files": states}), encoding="utf-8")
    return result


def _scan(checkpoint: Checkpoint, parameters: Collection[str], progress: Callable[[int, int], None] | None) -> str:
    """Hash all tensors in threads, one tensor each; the fingerprint is that of their digests in order of name."""
    total = sum(file.stat().st_size for file in checkpoint.files)
    done: SimpleQueue[int] = SimpleQueue()
    whole = hashlib.sha256(json.dumps(_described(checkpoint), sort_keys=True).encode())
    read = 0
    with ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1)) as pool:
        names = sorted(checkpoint.tensors)
        digests = [pool.submit(_digest, checkpoint.tensors[name], name, name in parameters, done) for name in names]
        try:
            for name, one in zip(names, digests, strict=True):
                while not one.done() or not done.empty():
                    with suppress(Empty):
                        read += done.get(timeout=_LOOK_SECONDS)
                        if progress:
                            progress(read, total)
                info = checkpoint.tensors[name]
                whole.update(f"{name} {info.dtype} {info.shape}".encode() + one.result())
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return whole.hexdigest()


def _described(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the content of config.json, without the version that wrote it."""
    content = json.loads((checkpoint.folder / CONFIG).read_text(encoding="utf-8"))
    return {field: value for field, value in content.items() if field != "transformers_version"}


def _digest(info: TensorInfo, name: str, parameter: bool, done: "SimpleQueue[int]") -> bytes:
    digest = hashlib.sha256()
    rows = info.shape[0] if info.shape else 1
    row_bytes = info.dtype.itemsize * (torch.Size(info.shape).numel() // max(rows, 1))
    step = max(1, _CHUNK_BYTES // max(row_bytes, 1))
    with safe_open(info.file, framework="pt") as file:
        for start in range(0, rows, step):
            piece = file.get_slice(name)[start : start + step] if info.shape else file.get_tensor(name)
            if parameter and info.dtype.is_floating_point and not _finite(piece):
                raise InputError(
                    f"{info.file}: {name} holds NaN or infinity, with which nothing can be computed; the file is "
                    "damaged, or the model was saved in a type that is too narrow for this weight"
                )
            content = piece.contiguous().reshape(-1).view(torch.uint8).numpy()
            digest.update(content.data)
            done.put(content.size)
    return digest.digest()


def _finite(piece: torch.Tensor) -> bool:
    """Check by the extremes, which are NaN where one value is: a pass that keeps nothing."""
    return not piece.numel() or all(bool(torch.isfinite(one)) for one in torch.aminmax(piece))
