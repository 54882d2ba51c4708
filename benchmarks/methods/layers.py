"""Layers to compress: random weights, and second moments that come from real text through a real, small model.

No trained model of these widths ships with the package. Its mini BLOOM (width 192, 8 blocks) reads its calibration
text in 20 languages; the hidden states of all blocks, side by side, are what is real. Two random GELU layers with
log-normal column scales lift them to the width of the layer, so that the moment has full rank, a few strong columns
and a decaying spectrum. The weights are random too: Student's t with log-normal row and column scales.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import gelu
from transformers import AutoModelForCausalLM, AutoTokenizer

import mbs_ray
from mbs_ray.methods import Moment, Statistic

MINI = Path(mbs_ray.__file__).parent / "mini"
SEGMENTS = 128
LENGTH = 128
FREEDOM = 5
"""Degrees of freedom of the weights' Student's t."""
SPREAD = 0.5
"""Standard deviation of the logarithms of the scales of rows and columns."""


@dataclass(frozen=True, eq=False)
class Spectrum:
    """What the eigenvalues of a moment [columns, columns] say of it."""

    columns: int
    tokens: int
    condition: float
    """Largest over smallest eigenvalue."""
    damped_condition: float
    """The same once `damping` times the mean diagonal is added."""
    effective_rank: float
    """exp of the entropy of the eigenvalues as shares of their sum (Roy & Vetterli, EUSIPCO 2007)."""

    @classmethod
    def of(cls, moment: Moment, damping: float) -> "Spectrum":
        values = torch.linalg.eigvalsh(moment.sum.double())
        low, high, added = float(values[0]), float(values[-1]), damping * float(values.mean())
        if low <= 0:
            raise RuntimeError(f"the moment of {moment.columns} columns has no full rank: an eigenvalue is {low:.3g}")
        shares = values / values.sum()
        entropy = -(shares * shares.log()).sum()
        return cls(moment.columns, moment.tokens, high / low, (high + added) / (low + added), float(entropy.exp()))


def hidden_states() -> Tensor:
    """[segments, length, states * width] float32: the embedding and all blocks of the mini, side by side.

    The same number of segments per language, give or take one. Every feature is scaled to mean square 1.
    """
    folder = MINI / "models" / "bloom-mini-5m"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    languages = []
    for path in sorted((MINI / "text" / "calibration").glob("*.txt")):
        tokens = torch.tensor(tokenizer(path.read_text(encoding="utf-8"))["input_ids"])
        languages.append(tokens[: len(tokens) // LENGTH * LENGTH].view(-1, LENGTH))
    rounds = min(len(segments) for segments in languages)
    segments = torch.stack([segments[index] for index in range(rounds) for segments in languages])[:SEGMENTS]
    if len(segments) < SEGMENTS:
        raise RuntimeError(f"the texts hold {len(segments)} segments, not {SEGMENTS}")
    with torch.no_grad():
        outputs = [model(part, output_hidden_states=True, use_cache=False) for part in segments.split(16)]
    states = torch.cat([torch.cat(output.hidden_states, dim=-1) for output in outputs])
    return states / states.square().mean(dim=(0, 1)).sqrt()


def lifted_moment(states: Tensor, columns: int) -> Moment:
    """The full moment of `states`, lifted to so many columns by two fixed random GELU layers."""
    generator = torch.Generator().manual_seed(columns)
    first, second = (
        torch.randn(width, columns, generator=generator) / width**0.5 for width in (states.shape[-1], columns)
    )
    scales = _log_normal(columns, generator)
    moment = Moment.zeros(columns, Statistic.FULL)
    for part in states.split(16):
        inner = gelu(part.flatten(0, 1) @ first)
        inner = (inner - inner.mean(1, keepdim=True)) / inner.std(1, keepdim=True)
        moment.add(gelu(inner @ second) * scales)
    return moment


def random_weight(rows: int, columns: int) -> Tensor:
    """[rows, columns] float32: Student's t, rows and columns of different scale."""
    generator = torch.Generator().manual_seed(rows * 100_000 + columns)
    normal = torch.randn(rows, columns, generator=generator)
    spread = torch.zeros(rows, columns)
    for _ in range(FREEDOM):
        spread += torch.randn(rows, columns, generator=generator).square() / FREEDOM
    return 0.02 * normal / spread.sqrt() * _log_normal(rows, generator)[:, None] * _log_normal(columns, generator)


def _log_normal(count: int, generator: torch.Generator) -> Tensor:
    return (SPREAD * torch.randn(count, generator=generator)).exp()
