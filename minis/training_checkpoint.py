"""Checkpoints of a training under way: weights, AdamW moments and counters, in safetensors and JSON."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from mbs_ray.files import appearing_folder


@dataclass
class TrainingCounters:
    """Counters of a training: ``drawn`` is the number of segments taken of each language."""

    step: int
    drawn: dict[str, int]
    seconds: float


def store(
    folder: Path,
    parameters: Mapping[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    progress: TrainingCounters,
) -> None:
    """Replace the checkpoint in ``folder``; killed at any moment, it leaves this checkpoint or the one before."""
    tensors: dict[str, torch.Tensor] = {}
    for name, parameter in parameters.items():
        state = optimizer.state[parameter]
        tensors[name] = parameter.detach().cpu()
        tensors[f"{name}/exp_avg"] = state["exp_avg"].cpu()
        tensors[f"{name}/exp_avg_sq"] = state["exp_avg_sq"].cpu()
    with appearing_folder(folder) as unfinished:
        save_file(tensors, unfinished / "state.safetensors")
        (unfinished / "progress.json").write_text(json.dumps(asdict(progress)))
        # Only now that the new one is whole, and just before it takes the name: one of the two is always there.
        if folder.exists():
            shutil.rmtree(_previous(folder), ignore_errors=True)
            folder.rename(_previous(folder))


def restore(
    folder: Path, parameters: Mapping[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer
) -> TrainingCounters | None:
    """Restore weights and moments from ``folder``, or from the checkpoint before; None where there is neither."""
    found = next((path for path in (folder, _previous(folder)) if path.is_dir()), None)
    if found is None:
        return None
    progress = TrainingCounters(**json.loads((found / "progress.json").read_text()))
    with safe_open(found / "state.safetensors", framework="pt") as stored, torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(stored.get_tensor(name))
            optimizer.state[parameter] = {
                "step": torch.tensor(float(progress.step), device=parameter.device),
                "exp_avg": stored.get_tensor(f"{name}/exp_avg").to(parameter.device).clone(),
                "exp_avg_sq": stored.get_tensor(f"{name}/exp_avg_sq").to(parameter.device).clone(),
            }
    return progress


def _previous(folder: Path) -> Path:
    return folder.with_name("checkpoint.old")
