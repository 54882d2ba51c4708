"""Nine runs on one collection of dense statistics against nine sweeps that collect their own, and against propagation.

``python benchmarks/engine/dense_moments.py OUT``: {wanda, sparsegpt, gptq} × {English, equal, proportional} on the
larger BLOOM of the package, one stage of one CPU thread, in one local Ray. Text and the dense model's scores are made
before, and all sweeps find them there. ``--corpus`` and ``--evaluation`` are folders of other text than the package's.

Two times of every sweep: *whole*, from the command to the report, and *stages*, from the first thing a stage did to the
last, without the start of actors, checks, tables and figures.
"""

import argparse
import hashlib
import io
import itertools
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
import ray
from rich.console import Console

import mbs_ray
from mbs_ray.driver.progress import Progress
from mbs_ray.driver.sweep import conduct
from mbs_ray.run.sweep_spec import SweepSpec, validated

_MINI = Path(mbs_ray.__file__).parent / "mini"
_METHODS = [{"name": "wanda", "sparsity": 0.5}, {"name": "sparsegpt", "sparsity": 0.5}, {"name": "gptq", "bits": 3}]
_SAMPLINGS = [{"name": "monolingual", "language": "en"}, "equal", "proportional"]


class Sweeps:
    """Sweeps under one ``out``, timed; ``run`` are the fields they have in common."""

    def __init__(self, out: Path, run: dict[str, Any]) -> None:
        self._out, self._run = out, run
        self._progress = Progress(Console(file=io.StringIO()))

    def conduct(
        self, name: str, methods: Iterable[Any], samplings: Iterable[Any], **changes: Any
    ) -> tuple[float, float]:
        """Seconds: the whole, and of the stages. Statistics of earlier sweeps are removed, so that none is found."""
        shutil.rmtree(self._out / "statistics", ignore_errors=True)
        content = {
            "name": name,
            "run": {**self._run, **changes},
            "grid": {"method": list(methods), "sampling": list(samplings)},
            "layout": {"stages": 1},
            "threads": 1,
        }
        begun = time.monotonic()
        result = conduct(validated(SweepSpec, content), self._out, None, self._progress)
        whole = time.monotonic() - begun
        if result.failed:
            raise SystemExit(f"{name}: {result.failed}")
        spans = pd.read_parquet(self._out / name / "timeline.parquet")
        return whole, float(spans["end"].max() - spans["begin"].min())

    def bits(self, *names: str) -> dict[str, str]:
        """sha256 of every block, by run and block."""
        return {
            f"{path.parents[1].name}/{path.name}": hashlib.sha256(path.read_bytes()).hexdigest()
            for name in names
            for path in sorted(self._out.glob(f"{name}/runs/*/blocks/*.safetensors"))
        }

    def collecting(self, name: str) -> float:
        """Seconds in which statistics were collected."""
        spans = pd.read_parquet(self._out / name / "timeline.parquet")
        own = spans[spans["run"].str.startswith("statistics-")]
        return float((own["end"] - own["begin"]).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--corpus", type=Path, default=_MINI / "text" / "calibration")
    parser.add_argument("--evaluation", type=Path, default=_MINI / "text" / "evaluation")
    parser.add_argument("--segments-per-language", type=int, default=16)
    parser.add_argument("--sequence-length", type=int, default=128)
    parser.add_argument("--dense-only", action="store_true", help="leave the propagated sweep out")
    arguments = parser.parse_args()
    each = arguments.segments_per_language
    run = {
        "model": str(_MINI / "models" / "bloom-mini-5m"),
        "corpus": str(arguments.corpus.resolve()),
        "languages": "paper",
        "segments": 20 * each,
        "sequence_length": arguments.sequence_length,
        "allow_repeat": True,
        "evaluation": {"held-out": {"corpus": str(arguments.evaluation.resolve()), "segments": 4}},
        "statistics": {"mode": "dense", "segments_per_language": each},
    }
    sweeps = Sweeps(arguments.out.resolve(), run)
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    sweeps.conduct("first", _METHODS[:1], _SAMPLINGS)
    if not arguments.dense_only:
        sweeps.conduct("first-propagated", _METHODS[:1], _SAMPLINGS, statistics="propagated")
    grid = sweeps.conduct("grid", _METHODS, _SAMPLINGS)
    alone: list[tuple[float, float]] = []
    names = []
    for number, (method, sampling) in enumerate(itertools.product(_METHODS, _SAMPLINGS)):
        names.append(f"alone-{number}")
        alone.append(sweeps.conduct(names[-1], [method], [sampling]))
    separate = tuple(sum(times) for times in zip(*alone, strict=True))
    print("| nine runs | whole s | stages s | of them collecting |\n|---|---:|---:|---:|")
    print(f"| dense, one sweep | {grid[0]:.1f} | {grid[1]:.1f} | {sweeps.collecting('grid'):.1f} |")
    collecting = sum(sweeps.collecting(name) for name in names)
    print(f"| dense, nine sweeps | {separate[0]:.1f} | {separate[1]:.1f} | {collecting:.1f} |", flush=True)
    if not arguments.dense_only:
        propagated = sweeps.conduct("propagated", _METHODS, _SAMPLINGS, statistics="propagated")
        print(f"| propagated, one sweep | {propagated[0]:.1f} | {propagated[1]:.1f} | |")
        ratios = [way / dense for way, dense in zip(propagated, grid, strict=True)]
        print(f"\npropagated ÷ dense, one sweep: {ratios[0]:.2f} whole, {ratios[1]:.2f} of the stages")
    print(f"\nnine sweeps ÷ one: {separate[0] / grid[0]:.2f} whole, {separate[1] / grid[1]:.2f} of the stages")
    same = sweeps.bits("grid") == sweeps.bits("alone-*")
    print("bits of nine sweeps and of one: " + ("the same" if same else "OTHER BITS"))


if __name__ == "__main__":
    main()
