"""The device of a forward is the one that was asked for, or a line with the reason."""

import pytest
import torch

from mbs_ray.compression.device import forward_device, why_no_cuda
from mbs_ray.errors import InputError


def test_a_cpu_is_a_cpu_and_auto_is_what_there_is() -> None:
    assert forward_device("cpu") == torch.device("cpu")
    assert forward_device().type == forward_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_torch_cannot_use_is_refused_with_the_reason() -> None:
    assert torch.__version__ in why_no_cuda()
    with pytest.raises(InputError, match=r"device: cuda: torch .*; mend that, or give device: cpu"):
        forward_device("cuda")
