"""One pass over a checkpoint before a job: are all weights finite, and what is its fingerprint?"""

import hashlib
import json
from collections.abc import Callable, Collection
from pathlib import Path

import torch
from safetensors import safe_open

from mbs_ray.errors import InputError
from mbs_ray.files import appearing
from mbs_ray.json_files import own_content, read_json
from mbs_ray.model.checkpoint import Checkpoint

_CURE = "remove it, what it holds is found again"
_CHUNK_BYTES = 64 * 2**20


def fingerprint(
    checkpoint: Checkpoint,
    parameters: Collection[str],
    cache: Path,
    progress: Callable[[int, int], None] | None = None,
) -> str:
    """sha256 of config and all tensors (names, types, shapes, bytes), however they are sharded.

    Reads every tensor once in pieces of 64 MiB and raises :class:`InputError` naming the first of ``parameters``
    (stored names) that holds NaN or infinity; a stored mask may well hold -inf. The answer is kept under ``cache``
    for files whose size and time of change are the same. ``progress`` is called with bytes done and bytes in all.
    """
    files = [checkpoint.folder / "config.json", *checkpoint.files]
    states = [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    key = hashlib.sha256(json.dumps(states).encode()).hexdigest()
    stored = cache / f"{key}.json"
    if stored.is_file():
        with own_content(stored, _CURE):
            return str(read_json(stored, _CURE)["fingerprint"])
    result = _scan(checkpoint, parameters, progress)
    with appearing(stored) as unfinished:
        unfinished.write_text(json.dumps({"fingerprint": result, "files": states}), encoding="utf-8")
    return result


def _scan(checkpoint: Checkpoint, parameters: Collection[str], progress: Callable[[int, int], None] | None) -> str:
    total = sum(file.stat().st_size for file in checkpoint.files)
    done = 0
    whole = hashlib.sha256(checkpoint.config.to_json_string().encode())
    for name in sorted(checkpoint.tensors):
        info = checkpoint.tensors[name]
        whole.update(f"{name} {info.dtype} {info.shape}".encode())
        rows = info.shape[0] if info.shape else 1
        row_bytes = info.dtype.itemsize * (torch.Size(info.shape).numel() // max(rows, 1))
        step = max(1, _CHUNK_BYTES // max(row_bytes, 1))
        with safe_open(info.file, framework="pt") as file:
            for start in range(0, rows, step):
                piece = file.get_slice(name)[start : start + step] if info.shape else file.get_tensor(name)
                if name in parameters and info.dtype.is_floating_point and not torch.isfinite(piece).all():
                    raise InputError(
                        f"{info.file}: {name} holds NaN or infinity, with which nothing can be computed; the file is "
                        "damaged, or the model was saved in a type that is too narrow for this weight"
                    )
                content = piece.contiguous().reshape(-1).view(torch.uint8).numpy()
                whole.update(content.data)
                done += content.size
                if progress:
                    progress(done, total)
    return whole.hexdigest()
