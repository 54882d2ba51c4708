"""The shapes of minis: each is of the size that its name says, and trained on the length that its configuration has."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from minis.shapes import SHAPES, shape_config


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_has_about_as_many_parameters_as_its_name_says(shape: str) -> None:
    config = shape_config(shape, 8192, 128)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    millions = int(shape.rsplit("-", 1)[-1].removesuffix("m"))
    assert sum(one.numel() for one in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.12)
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, 2, 3)
    assert 128 in (getattr(config, "seq_length", None), getattr(config, "max_position_embeddings", None))
