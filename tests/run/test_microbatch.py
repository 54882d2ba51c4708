"""How many segments go through a block at a time."""

from types import SimpleNamespace
from typing import Any

import pytest

from mbs_ray.run.microbatch import auto_microbatch, settled_microbatch


def decoder_of(hidden_size: int, holds_scores: bool) -> Any:
    return SimpleNamespace(checkpoint=SimpleNamespace(hidden_size=hidden_size), holds_scores=holds_scores)


@pytest.mark.parametrize(
    ("length", "device", "hidden_size", "expected", "without_scores"),
    [
        (2048, "cuda", 14336, 2, 2),
        (128, "cuda", 64, 32, 32),
        (8192, "cuda", 64, 1, 1),  # never none
        (256, "cpu", 1024, 2, 4),  # 512 tokens of a wide model, or 1,024
        (256, "cpu", 14336, 2, 4),
        (128, "cpu", 192, 10, 10),  # as many numbers of a narrow one
        (128, "cpu", 16, 32, 32),  # but no more than on a GPU
        (2048, "cpu", 1024, 1, 1),
    ],
)
def test_a_gpu_takes_4096_tokens_and_a_cpu_what_its_caches_hold(
    length: int, device: str, hidden_size: int, expected: int, without_scores: int
) -> None:
    for holds_scores, wanted in ((True, expected), (False, without_scores)):
        decoder = decoder_of(hidden_size, holds_scores)
        assert auto_microbatch(length, device, decoder) == wanted
        assert settled_microbatch("auto", length, device, decoder) == wanted
        assert settled_microbatch(7, length, device, decoder) == 7
