"""Rules by which sparsity can be dealt out over linears, on one of the package's models: what each comes to.

``python -m benchmarks.methods.rules_of_amounts TRAIN VALIDATION``: folders of <language>.parquet with a column text, of
the paper's twenty languages. SparseGPT in this process, no Ray: a few minutes.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from mbs_ray.compression.collect import collect
from mbs_ray.compression.sensitivity import Sensitivity, measure_sensitivity
from mbs_ray.compression.solve import solve
from mbs_ray.evaluation.scoring import score
from mbs_ray.languages.dealing import Tried, deal, ramp
from mbs_ray.languages.facts import PAPER_LANGUAGES
from mbs_ray.methods import Amounts, Moment, SparseGPT, Statistic
from mbs_ray.model.checkpoint import Checkpoint
from mbs_ray.model.decoder import Decoder
from mbs_ray.text.tokenizer_files import load_tokenizer

_LENGTH, _CALIBRATION, _EVALUATION, _GRADIENTS = 128, 16, 24, 8
_MODEL = Path(__file__).parents[2] / "mbs_ray" / "mini" / "models" / "bloom-mini-2m"
#: A score so many times the mean of its block is an outlier: OWL, arXiv 2310.05175.
_OUTLIER, _OWL_WIDTH = 5.0, 0.08
Texts = dict[str, torch.Tensor]
Linear = tuple[int, str]
_HOST = torch.device("cpu")


class Model:
    """A dense model, its text, and what is known of both."""

    def __init__(self, folder: Path, train: Path, validation: Path) -> None:
        self.decoder = Decoder(Checkpoint(folder), torch.float32)
        tokenizer = load_tokenizer(str(folder))
        self.calibration = _texts(tokenizer, train, _CALIBRATION)
        self.evaluation = _texts(tokenizer, validation, _EVALUATION)
        blocks = range(self.decoder.blocks)
        self.linears = {(block, name): shape for block in blocks for name, shape in self.decoder.linears(block).items()}
        self.weights = np.array([rows * columns for rows, columns in self.linears.values()])
        self.moments = {code: self._moments(ids) for code, ids in self.calibration.items()}
        self.sensitivity = self._sensitivity()
        self.dense = self.nll(None, 0.5)

    def nll(self, amounts: dict[Linear, float] | None, sparsity: float) -> np.ndarray:
        """Compute the nll per token of each language after pruning with these amounts; None: of the dense model."""
        decoder, method = self.decoder, SparseGPT(sparsity=sparsity)
        hidden, scored = ([decoder.embed(ids) for ids in own.values()] for own in (self.calibration, self.evaluation))
        for block in range(decoder.blocks):
            tensors = decoder.read_block(block)
            module = decoder.load_block(block, tensors)
            if amounts is not None:
                found = collect(decoder, module, block, hidden, Statistic.FULL)
                own = Amounts("sparsity", {block: {name: amounts[block, name] for name in decoder.linears(block)}})
                methods = own.methods(method, block)
                solved = solve(tensors, list(methods), found, method, _HOST, f"block {block}", methods=methods)
                module = decoder.load_block(block, {**tensors, **solved.weights})
            hidden, scored = ([decoder.run_block(module, block, one) for one in own] for own in (hidden, scored))
        finished = [(decoder.finish(one), ids) for one, ids in zip(scored, self.evaluation.values(), strict=True)]
        return np.array([float(one.nll.double().mean()) for one in score(decoder, finished)])

    def tried(self, sparsities: np.ndarray) -> tuple[Tried, Tried]:
        """Return predicted increases, [linears, amounts, languages], and relative errors of outputs in their place."""
        cost = np.zeros((len(self.linears), len(sparsities), len(self.moments)))
        relative = np.zeros((len(self.linears), len(sparsities), 1))
        for place, (block, name) in enumerate(self.linears):
            weight = self.decoder.read_block(block)[f"{name}.weight"].float()
            own = [moments[block, name] for moments in self.moments.values()]
            whole = Moment(
                Statistic.FULL,
                weight.shape[1],
                sum(one.tokens for one in own),
                torch.stack([one.sum for one in own]).sum(0),
            )
            energy = float(((weight @ whole.sum) * weight).sum())
            for at, sparsity in enumerate(sparsities):
                change = SparseGPT(sparsity=float(sparsity)).compress(weight, whole).weight - weight
                errors = np.array([float(((change @ one.sum) * change).sum()) for one in own])
                sensitive = [self.sensitivity[block][name][code] for code in self.moments]
                cost[place, at] = 0.5 * np.array(sensitive) * errors / own[0].tokens
                relative[place, at] = errors.sum() / energy
        kept = 1 - sparsities
        return Tried(sparsities, kept, cost, self.weights), Tried(sparsities, kept, relative, self.weights)

    def owl(self, sparsity: float) -> np.ndarray:
        """Compute OWL's sparsity of each linear: the less, the more outliers its block has."""
        outliers = np.zeros(self.decoder.blocks)
        for block in range(self.decoder.blocks):
            tensors, counts = self.decoder.read_block(block), []
            for name in self.decoder.linears(block):
                squares = sum(moments[block, name].diagonal() for moments in self.moments.values())
                scores = tensors[f"{name}.weight"].float().abs() * torch.as_tensor(squares).sqrt()
                counts.append((int((scores > _OUTLIER * scores.mean()).sum()), scores.numel()))
            outliers[block] = sum(one for one, _ in counts) / sum(size for _, size in counts)
        places = 2 * _OWL_WIDTH * (outliers - outliers.min()) / (outliers.max() - outliers.min())
        return np.array([sparsity + places.mean() - places[block] for block, _ in self.linears])

    def _moments(self, ids: torch.Tensor) -> dict[Linear, Moment]:
        hidden, found = [self.decoder.embed(ids)], {}
        for block in range(self.decoder.blocks):
            module = self.decoder.load_block(block, self.decoder.read_block(block))
            own = collect(self.decoder, module, block, hidden, Statistic.FULL).moments
            found |= {(block, name): moment for name, moment in own.items()}
            hidden = [self.decoder.run_block(module, block, one) for one in hidden]
        return found

    def _sensitivity(self) -> Sensitivity:
        steps = measure_sensitivity(self.decoder, {code: ids[:_GRADIENTS] for code, ids in self.calibration.items()}, 8)
        with torch.enable_grad():
            while True:
                try:
                    next(steps)
                except StopIteration as end:
                    found: Sensitivity = end.value
                    return found


def _texts(tokenizer: Any, folder: Path, segments: int) -> Texts:
    """Cut the first documents of each language into segments of token ids."""
    found = {}
    for code in PAPER_LANGUAGES:
        ids: list[int] = []
        for text in pq.read_table(folder / f"{code}.parquet", columns=["text"])["text"].to_pylist():
            ids += [*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
            if len(ids) >= segments * _LENGTH:
                break
        found[code] = torch.tensor(ids[: segments * _LENGTH]).view(segments, _LENGTH)
    return found


def _rules(model: Model, sparsity: float) -> dict[str, np.ndarray]:
    """Sparsity of every linear by each rule."""
    blocks = [block for block, _ in model.linears]

    def within(width: float, low: float = 0.0, high: float = 1.0, of: int = 0) -> np.ndarray:
        tried = model.tried(np.array([max(low, sparsity - width), sparsity, min(high, sparsity + width)]))[of].refined()
        return tried.amounts[deal(tried, 1 - sparsity, "mean")]

    def by_block() -> np.ndarray:
        tried = model.tried(np.array([sparsity - 0.05, sparsity, sparsity + 0.05]))[0].refined()
        groups = [[at for at, one in enumerate(blocks) if one == block] for block in dict.fromkeys(blocks)]
        chosen = deal(tried.joined(groups), 1 - sparsity, "mean")
        return np.array([tried.amounts[chosen[block]] for block in blocks])

    rules: dict[str, Callable[[], np.ndarray]] = {
        "the same in all linears": lambda: np.full(len(blocks), sparsity),
        "increase, within 0.05": lambda: within(0.05),
        "within 0.12": lambda: within(0.12),
        "from 20 to 90 %": lambda: within(1.0, 0.2, 0.9),
        "by block, within 0.05": by_block,
        "relative error of outputs, within 0.05": lambda: within(0.05, of=1),
        "ramp, within 0.05": lambda: ramp(blocks, model.weights, sparsity, 0.05),
        "OWL, within 0.08": lambda: model.owl(sparsity),
    }
    return {name: rule() for name, rule in rules.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path)
    parser.add_argument("validation", type=Path)
    parser.add_argument("--model", type=Path, default=_MODEL)
    arguments = parser.parse_args()
    torch.set_grad_enabled(False)
    model = Model(arguments.model, arguments.train, arguments.validation)
    sparsities = (0.5, 0.6)
    print(f"log increase of the geometric mean; {arguments.model.name}")
    print("| rule | " + " | ".join(f"{one:.0%}" for one in sparsities) + " |\n|---|" + "---:|" * len(sparsities))
    found = [
        {
            name: float((model.nll(dict(zip(model.linears, amounts, strict=True)), sparsity) - model.dense).mean())
            for name, amounts in _rules(model, sparsity).items()
        }
        for sparsity in sparsities
    ]
    for name in found[0]:
        print(f"| {name} | " + " | ".join(f"{one[name]:.4f}" for one in found) + " |")


if __name__ == "__main__":
    main()
