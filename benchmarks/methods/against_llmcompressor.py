"""Ours against llm-compressor's own functions, layer by layer: error, zeros, time.

``PYTHONPATH=. python benchmarks/methods/against_llmcompressor.py`` in an environment with llm-compressor (its pins
clash with ours; of mbs_ray only `mbs_ray.methods` is imported, which needs torch alone).

Equal on both sides: the float32 weight; the float32 sums of x xᵀ (scaled to either side's convention, on which no
method depends); damping, relative to the mean diagonal; blocks of 128 columns in SparseGPT's mask; the order of the
columns; process and threads; the rule of the min-max grid: zero inside, scale = range / (2^bits - 1), a whole zero
point.

Not equal: without activation order ("-act") llm-compressor takes a group's range from the original weights, mbs_ray
from the weights as updated when the group begins; with it both take the original ones, so these rows compare one
and the same computation. Clip searches ("-clip") are each side's own. llm-compressor's SparseGPT prunes one weight
too many per block.

The error is tr(dW H dWᵀ) / tr(W H Wᵀ) with the undamped H, in float64, from the weights that either side returns. Time:
ours is `method.compress(weight, moment)` with its checks and the loss that it reports; theirs is the one function
that prunes or quantizes, its grids included, with the Hessian and working copies ready before the clock starts.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.methods.layers import SEGMENTS, Spectrum, hidden_states, lifted_moment, random_weight
from benchmarks.methods.llmcompressor_calls import peer_call
from mbs_ray.methods import GPTQ, Method, Moment, SparseGPT, Statistic, Wanda

LAYERS = ("1024x1024", "1024x4096", "4096x1024", "4096x4096")
DAMPING = 0.01
METHODS: tuple[Method, ...] = (
    Wanda(sparsity=0.5),
    Wanda(pattern="2:4"),
    SparseGPT(sparsity=0.5, damping=DAMPING),
    SparseGPT(pattern="2:4", damping=DAMPING),
    GPTQ(bits=3, group_size=128, damping=DAMPING),
    GPTQ(bits=4, group_size=128, damping=DAMPING),
    GPTQ(bits=4, group_size=128, symmetric=True, damping=DAMPING),
    GPTQ(bits=3, group_size=128, activation_order=True, damping=DAMPING),
    GPTQ(bits=4, group_size=128, activation_order=True, damping=DAMPING),
    GPTQ(bits=3, group_size=128, clip_search=True, damping=DAMPING),
    GPTQ(bits=4, group_size=128, clip_search=True, damping=DAMPING),
    SparseGPT(sparsity=0.5, damping=DAMPING, refine=1),
    SparseGPT(pattern="2:4", damping=DAMPING, refine=1),
    GPTQ(bits=3, group_size=128, damping=DAMPING, refine=1),
    GPTQ(bits=3, group_size=128, damping=DAMPING, refine=2),
    GPTQ(bits=4, group_size=128, damping=DAMPING, refine=1),
)


@dataclass(frozen=True)
class Side:
    """One implementation on one layer."""

    error: float
    zeros: int
    seconds: list[float]
    """One per repetition."""

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


@dataclass(frozen=True)
class Comparison:
    layer: str
    method: str
    ours: Side
    theirs: Side

    def row(self) -> str:
        ours, theirs = self.ours, self.theirs
        cells = (
            self.layer,
            self.method,
            f"{ours.error:.6f}",
            f"{theirs.error:.6f}",
            f"{ours.error / theirs.error - 1:+.1e}",
            f"{ours.zeros:,}",
            f"{theirs.zeros:,}",
            f"{ours.median:.3f}",
            f"{theirs.median:.3f}",
            f"{theirs.median / ours.median:.2f}",
        )
        return f"| {' | '.join(cells)} |"


HEAD = """\
| rows × columns | method | error, ours | theirs | ours ÷ theirs - 1 | zeros, ours | theirs | s, ours | theirs | ratio |
|---|---|---:|---:|---:|---:|---:|---:|---:|---:|"""


def relative_error(original: Tensor, compressed: Tensor, moment: Moment) -> float:
    """tr(dW H dWᵀ) / tr(W H Wᵀ) in float64."""
    hessian = moment.sum.double()

    def energy(matrix: Tensor) -> float:
        return sum(float(((part @ hessian) * part).sum()) for part in matrix.double().split(512))

    return energy(compressed - original) / energy(original)


def our_call(method: Method, weight: Tensor, moment: Moment) -> Callable[[], Tensor]:
    def call() -> Tensor:
        result = method.compress(weight, moment)
        if method.statistic is Statistic.FULL and result.damping != DAMPING:
            raise RuntimeError(f"damping {result.damping:g} was needed: no longer the same problem on both sides")
        return result.weight

    return call


def compare(layer: str, method: Method, weight: Tensor, moment: Moment, repeat: int) -> Comparison:
    """Alternate both sides; the first round warms up and is not timed."""
    given = moment
    if method.statistic is Statistic.DIAGONAL:
        given = Moment(Statistic.DIAGONAL, moment.columns, moment.tokens, moment.diagonal().clone())
    prepare = (lambda: our_call(method, weight, given)), (lambda: peer_call(method, weight, given, SEGMENTS))
    seconds: tuple[list[float], list[float]] = [], []
    results: list[Tensor] = []
    for _ in range(1 + repeat):
        results.clear()
        for prepared, times in zip(prepare, seconds, strict=True):
            call = prepared()
            started = time.perf_counter()
            results.append(call())
            times.append(time.perf_counter() - started)
    sides = [
        Side(relative_error(weight, result, moment), result.numel() - int(result.count_nonzero()), times[1:])
        for result, times in zip(results, seconds, strict=True)
    ]
    return Comparison(layer, method.label, *sides)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    labels = [method.label for method in METHODS]
    parser.add_argument("--layers", nargs="+", choices=LAYERS, default=LAYERS, help="rows x columns")
    parser.add_argument("--methods", nargs="+", choices=labels, default=labels)
    parser.add_argument("--repeat", type=int, default=3, help="timed repetitions; the median is printed")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write all numbers to this file as well")
    return parser.parse_args()


@torch.no_grad()
def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    setting = (
        f"torch {torch.__version__}, llm-compressor {version('llmcompressor')}, {options.threads} threads, "
        f"{torch.backends.cpu.get_cpu_capability()}, float32, damping {DAMPING}, median of {options.repeat}"
    )
    print(setting, end="\n\n")
    states = hidden_states()
    spectra, comparisons = [], []
    shapes = [tuple(map(int, layer.split("x"))) for layer in options.layers]
    for columns in sorted({columns for _, columns in shapes}):
        moment = lifted_moment(states, columns)
        spectrum = Spectrum.of(moment, DAMPING)
        spectra.append(spectrum)
        print(
            f"moment of {columns} columns, {moment.tokens} tokens: condition number {spectrum.condition:.3g}, "
            f"with damping {spectrum.damped_condition:.3g}; effective rank {spectrum.effective_rank:.0f}",
            end="\n\n",
        )
        print(HEAD)
        for rows in sorted(rows for rows, width in shapes if width == columns):
            weight = random_weight(rows, columns)
            for method in METHODS:
                if method.label in options.methods:
                    comparison = compare(f"{rows} × {columns}", method, weight, moment, options.repeat)
                    comparisons.append(comparison)
                    print(comparison.row(), flush=True)
        print()
    if options.json:
        numbers = {
            "setting": setting,
            "moments": [asdict(spectrum) for spectrum in spectra],
            "layers": [asdict(comparison) for comparison in comparisons],
        }
        options.json.write_text(json.dumps(numbers, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
