"""The device of a forward is the one that was asked for, or a line with the reason; and what it flushes to zero."""

import threading

import pytest
import torch

from mbs_ray.compression.device import exact_forward, forward_device, why_no_cuda
from mbs_ray.errors import InputError

SMALL = 1e-40


def test_a_cpu_is_a_cpu_and_auto_is_what_there_is() -> None:
    assert forward_device("cpu") == torch.device("cpu")
    assert forward_device().type == forward_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_torch_cannot_use_is_refused_with_the_reason() -> None:
    assert torch.__version__ in why_no_cuda()
    with pytest.raises(InputError, match=r"device: cuda: torch .*; mend that, or give device: cpu"):
        forward_device("cuda")


def not_zero() -> int:
    """How many of many denormals a product of several threads leaves."""
    return int((torch.full((1_000_000,), SMALL) * 1.0).count_nonzero())


def test_denormals_are_zeros_in_all_threads_of_a_forward_and_nowhere_else() -> None:
    found = []

    def forward() -> None:
        with exact_forward(2):
            found.append(not_zero())

    thread = threading.Thread(target=forward)
    thread.start()
    thread.join()
    assert found == [0]
    assert not_zero() == 1_000_000
    with exact_forward(None):
        assert float(torch.tensor(SMALL) * 1.0) == 0
    assert float(torch.tensor(SMALL) * 1.0) > 0
