"""BLOOM's GELU a part at a time: the bits of transformers', whatever the dtype and the size."""

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers.models.bloom.modeling_bloom import BloomGelu

from mbs_ray.model import gelu
from mbs_ray.model.checkpoint import Checkpoint
from mbs_ray.model.decoder import Decoder
from mbs_ray.model.gelu import PartedGelu, hasten_gelu


@pytest.fixture
def hastened() -> nn.Module:
    block = nn.Sequential(nn.Sequential(BloomGelu()))
    hasten_gelu(block)
    assert any(isinstance(one, PartedGelu) for one in block.modules())
    return block


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(1, 3, 5), (2, 7, 31), (0, 3, 5), (3, 64, 7)], ids=str)
def test_every_bit_is_that_of_transformers(
    hastened: nn.Module, dtype: torch.dtype, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gelu, "_PART", 64)
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(1)).mul(4).to(dtype)
    before = inputs.clone()
    output = hastened(inputs)
    assert output.shape == inputs.shape and torch.equal(output, BloomGelu()(inputs))
    assert torch.equal(inputs, before)


def test_every_size_of_number_is_rounded_as_by_transformers(hastened: nn.Module) -> None:
    # All bfloat16 numbers that are finite, once as they are and once widened.
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    every = every[every.isfinite()]
    for inputs in (every, every.float()):
        assert torch.equal(hastened(inputs), BloomGelu()(inputs))


def test_rows_that_are_not_contiguous_give_the_same(hastened: nn.Module) -> None:
    inputs = torch.randn(6, 8).t()
    assert torch.equal(hastened(inputs), BloomGelu()(inputs))


def test_gradients_are_those_of_transformers(hastened: nn.Module) -> None:
    ours, theirs = (torch.linspace(-4, 4, 33).requires_grad_() for _ in range(2))
    hastened(ours).sum().backward()
    BloomGelu()(theirs).sum().backward()
    assert ours.grad is not None and theirs.grad is not None
    assert torch.equal(ours.grad, theirs.grad) and bool(ours.grad.any())


def test_blocks_of_bloom_have_it_and_no_other_tensors_for_it(bloom: Path) -> None:
    decoder = Decoder(Checkpoint(bloom), torch.float32)
    block = decoder.load_block(0, decoder.read_block(0))
    assert sum(isinstance(one, PartedGelu) for one in block.modules()) == 1
    assert not list(PartedGelu(BloomGelu()).state_dict())
