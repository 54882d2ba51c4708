"""Full float32 arithmetic, whatever the caller has switched on."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def exact_float32() -> Iterator[None]:
    """Run without TF32 or bfloat16 inside float32 products and without autograd graph; usable as a decorator."""
    cuda, cpu = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = cuda.fp32_precision, cpu.fp32_precision
    cuda.fp32_precision = cpu.fp32_precision = "ieee"
    try:
        with torch.no_grad():
            yield
    finally:
        cuda.fp32_precision, cpu.fp32_precision = before
