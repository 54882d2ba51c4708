"""The obvious way to compress a model, for comparison with the stages: all in memory, hooks on its linears."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from mbs_ray.methods import Moment, build_method
from mbs_ray.text.segment_file import SegmentSet


def compress_plainly(
    model_folder: Path,
    calibration: SegmentSet,
    method: dict[str, Any],
    microbatch: int,
    path: str = "transformer.h",
    *,
    parts: Sequence[range] | None = None,
    in_sequence: bool = False,
) -> dict[str, torch.Tensor]:
    """The compressed weights, block after block, of all linears of a block at once.

    ``parts`` of the segments have moments of their own, which are added at the end. ``in_sequence`` compresses linear
    after linear, with the whole model anew for each: of a BLOOM, whose linears have an input each.
    """
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    stored = AutoModelForCausalLM.from_pretrained(model_folder)
    token_ids = torch.from_numpy(calibration.read().token_ids.astype("int64"))
    solver = build_method(method)
    result = {}
    for index, block in enumerate(model.get_submodule(path)):
        linears = {name: module for name, module in block.named_modules() if isinstance(module, torch.nn.Linear)}
        for group in [[name] for name in linears] if in_sequence else [list(linears)]:
            own = {name: linears[name] for name in group}
            whole, *others = [
                _moments(model, own, token_ids[part.start : part.stop], solver.statistic, microbatch)
                for part in parts or [range(len(token_ids))]
            ]
            for name, module in own.items():
                for other in others:
                    whole[name].merge(other[name])
                weight = stored.get_submodule(f"{path}.{index}.{name}").weight.detach()
                compressed = solver.compress(weight, whole[name]).weight
                module.weight.data = compressed.float()
                result[f"{path}.{index}.{name}.weight"] = compressed
    return result


def _moments(
    model: Any, linears: dict[str, torch.nn.Linear], token_ids: torch.Tensor, statistic: Any, microbatch: int
) -> dict[str, Moment]:
    moments = {name: Moment.zeros(module.in_features, statistic) for name, module in linears.items()}
    hooks = [
        module.register_forward_pre_hook(lambda _, inputs, own=moments[name]: own.add(inputs[0]))
        for name, module in linears.items()
    ]
    with torch.no_grad():
        for rows in token_ids.split(microbatch):
            model(rows)
    for hook in hooks:
        hook.remove()
    return moments
