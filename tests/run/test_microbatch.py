"""How many segments go through a block at a time."""

import pytest

from mbs_ray.run.microbatch import auto_microbatch, settled_microbatch


@pytest.mark.parametrize(
    ("length", "device", "hidden_size", "expected"),
    [
        (2048, "cuda", 14336, 2),
        (128, "cuda", 64, 32),
        (8192, "cuda", 64, 1),  # never none
        (256, "cpu", 1024, 2),  # 512 tokens of a wide model
        (256, "cpu", 14336, 2),
        (128, "cpu", 192, 10),  # as many numbers of a narrow one
        (128, "cpu", 16, 32),  # but no more than on a GPU
        (2048, "cpu", 1024, 1),
    ],
)
def test_a_gpu_takes_4096_tokens_and_a_cpu_what_its_caches_hold(
    length: int, device: str, hidden_size: int, expected: int
) -> None:
    assert auto_microbatch(length, device, hidden_size) == expected
    assert settled_microbatch("auto", length, device, hidden_size) == expected
    assert settled_microbatch(7, length, device, hidden_size) == 7
