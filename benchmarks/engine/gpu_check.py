"""Ten minutes on one GPU: do the tests of CUDA pass, is the kernel of a leaf right and how fast, does 176B fit?

``python -m benchmarks.engine.gpu_check OUT`` writes OUT/gpu-check.json: the device, the tests that need it, the
compiled leaf against the same function uncompiled (which weights differ, seconds), copies of pinned memory beside
computing, one block of BLOOM-176B's shape with each method against its plan, second moments of bfloat16 against those
of float32. With a small ``--hidden`` and ``--columns`` it runs on a CPU too, which tells nothing of a GPU but that the
script works.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.engine.block_176b import (
    DEVICE,
    device_name,
    factor_residual,
    moment_types,
    print_table,
    run_block,
    settle,
    write_model,
)
from mbs_ray.cluster.activations.copies import CudaCopies
from mbs_ray.cluster.activations.memory_tier import MemoryTier, PinnedTier
from mbs_ray.cluster.activations.store import ActivationStore
from mbs_ray.methods import GPTQ, Method, Moment, SparseGPT, SparseGPTQ, Statistic, columns, kernel

METHODS: tuple[Method, ...] = (
    SparseGPT(sparsity=0.5),
    SparseGPT(pattern="2:4"),
    GPTQ(bits=4, group_size=128),
    GPTQ(bits=3, group_size=128, activation_order=True),
    SparseGPTQ(pattern="2:4", bits=4, group_size=128),
    GPTQ(bits=3, group_size=128, refine=1),
)
DTYPES = (torch.float32, torch.bfloat16)
REPEATS = 3
#: Tests that need CUDA, or run on it where there is one.
TESTS = ("tests/methods", "tests/compression", "tests/evaluation/test_scoring.py")


def tests() -> dict[str, Any]:
    """Run the tests that use a GPU where there is one."""
    begun = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "not slow and not ray", *TESTS], capture_output=True, text=True
    )
    return {"exit_code": ended.returncode, "seconds": time.monotonic() - begun, "end": ended.stdout[-1000:]}


def kernel_against_torch(rows: int, columns: int) -> list[dict[str, Any]]:
    """Compress one linear with the compiled leaf and with the plain one: the same bits? how long?"""
    generator = torch.Generator(device=DEVICE).manual_seed(0)
    scale = torch.rand(columns, device=DEVICE, generator=generator) + 0.1
    moment = Moment.zeros(columns, Statistic.FULL, device=DEVICE)
    for _ in range(max(2, columns // 2048)):
        moment.add(torch.randn(4096, columns, device=DEVICE, generator=generator) * scale)
    found = []
    for dtype in DTYPES:
        weight = (torch.randn(rows, columns, device=DEVICE, generator=generator) * 0.02).to(dtype)
        for method in METHODS:
            ways = {name: _timed(method, weight, moment, name == "compiled") for name in ("compiled", "plain")}
            kernel, plain = (ways[name][0] for name in ("compiled", "plain"))
            found.append(
                {
                    "method": method.label,
                    "dtype": str(dtype).removeprefix("torch."),
                    "rows": rows,
                    "columns": columns,
                    "weights_that_differ": int((kernel.weight != plain.weight).sum()),
                    "zeros_that_differ": int(((kernel.weight == 0) != (plain.weight == 0)).sum()),
                    "loss_compiled": kernel.loss,
                    "loss_plain": plain.loss,
                    **{f"seconds_{name}": statistics.median(seconds) for name, (_, seconds) in ways.items()},
                }
            )
            print(found[-1], flush=True)
    return found


def _timed(method: Method, weight: torch.Tensor, moment: Moment, compiled: bool) -> tuple[Any, list[float]]:
    """Result, and seconds of each repetition after a first one that is not counted."""
    chosen, least, seconds = columns.kernel_for, kernel.LEAST_COLUMNS, []
    kernel.LEAST_COLUMNS = 0
    if not compiled:
        columns.kernel_for = lambda work, dtype: kernel.TorchKernel(dtype, compiled=False)
    try:
        for _ in range(REPEATS + 1):
            begun = time.monotonic()
            result = method.compress(weight, moment)
            settle()
            seconds.append(time.monotonic() - begun)
    finally:
        columns.kernel_for, kernel.LEAST_COLUMNS = chosen, least
    return result, seconds[1:]


def copies_beside_computing(width: int) -> dict[str, Any]:
    """Take hidden states through pinned host memory and through the device's own: the same bits? how much longer?"""
    if DEVICE.type != "cuda":
        return {}
    generator = torch.Generator().manual_seed(0)
    hidden = [torch.randn(2, 2048, width, generator=generator).to(torch.bfloat16) for _ in range(8)]
    weight = torch.randn(width, width, generator=generator).to(DEVICE, torch.bfloat16) / width**0.5

    def taken(tier: MemoryTier) -> tuple[list[torch.Tensor], float]:
        store = ActivationStore(tier)
        for index, one in enumerate(hidden):
            store.put(index, 0, one)
        settle()
        begun = time.monotonic()
        for block in range(8):
            for index in range(len(hidden)):
                store.put(index, block + 1, store.get(index, block, DEVICE) @ weight @ weight)
        settle()
        seconds = time.monotonic() - begun
        return [store.get(index, 8, DEVICE).cpu() for index in range(len(hidden))], seconds

    pinned, beside = taken(PinnedTier(CudaCopies()))
    own, alone = taken(MemoryTier(DEVICE))
    same = all(map(torch.equal, pinned, own))
    return {"same_bits": same, "seconds_pinned": beside, "seconds_in_device_memory": alone}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--hidden", type=int, default=14336, help="of the block")
    parser.add_argument("--heads", type=int, default=112)
    parser.add_argument("--segments", type=int, default=32)
    parser.add_argument("--columns", type=int, default=4096, help="rows and columns of the linear of the kernels")
    parser.add_argument("--no-tests", action="store_true")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    file = arguments.out / "gpu-check.json"
    found: dict[str, Any] = {
        "device": device_name(),
        "capability": ".".join(map(str, torch.cuda.get_device_capability())) if DEVICE.type == "cuda" else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }

    def keep(name: str, value: Any) -> None:
        """Write after every step: of a machine that is taken away there is what was measured."""
        found[name] = value
        file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")

    with torch.inference_mode():
        keep("kernel", kernel_against_torch(arguments.columns, arguments.columns))
        keep("copies", copies_beside_computing(arguments.hidden))
        keep("moments", moment_types(4 * arguments.hidden, 16384))
        keep("factor", factor_residual(4 * arguments.hidden, 65536))
    model = arguments.out / "model"
    write_model(model, arguments.hidden, arguments.heads, 65536)
    keep("block", run_block(arguments.out, model, arguments.segments, 4, 65536))
    print_table(found["block"])
    if not arguments.no_tests:
        keep("tests", tests())
        print(found["tests"]["end"])
    print(f"written: {file}")


if __name__ == "__main__":
    main()
