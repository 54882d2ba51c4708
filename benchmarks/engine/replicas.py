"""One run on one, two and two replicas again: what changes in its numbers, and what sharing costs.

``python benchmarks/engine/replicas.py OUT``; one CPU thread per replica, the package's larger BLOOM and text.
"""

import argparse
import hashlib
import io
import time
from pathlib import Path

import pandas as pd
import ray
from rich.console import Console
from safetensors.torch import load_file

import mbs_ray
from mbs_ray.compression.block_report import read_block_reports
from mbs_ray.driver.progress import Progress
from mbs_ray.driver.sweep import conduct
from mbs_ray.evaluation.perplexity import language_scores
from mbs_ray.run.sweep_spec import SweepSpec, validated

_MINI = Path(mbs_ray.__file__).parent / "mini"
_METHODS = {
    "sparsegpt 50 %": {"name": "sparsegpt", "sparsity": 0.5},
    "wanda 50 %": {"name": "wanda", "sparsity": 0.5},
    "gptq 3 bit": {"name": "gptq", "bits": 3},
}


def spec(name: str, method: dict, replicas: int, segments: int) -> SweepSpec:
    run = {
        "model": str(_MINI / "models" / "bloom-mini-5m"),
        "corpus": str(_MINI / "text" / "calibration"),
        "method": method,
        "sampling": "equal",
        "segments": segments,
        "sequence_length": 128,
        "microbatch": 8,
        "allow_repeat": True,
        "evaluation": {"parallel": {"corpus": str(_MINI / "text" / "evaluation"), "segments": None}},
    }
    layout = {"stages": 1, "replicas": replicas}
    return validated(SweepSpec, {"name": name, "run": run, "layout": layout, "threads": 1})


def blocks(run: Path) -> list[Path]:
    return sorted((run / "blocks").glob("*.safetensors"))


def bits(run: Path) -> list[str]:
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in blocks(run)]


def largest_difference(one: Path, other: Path) -> tuple[float, float, float]:
    """Relative: of a linear's loss, of a language's perplexity; and the share of weights zero in both or in neither."""
    linears = [
        [linear for report in read_block_reports(run / "blocks") for linear in report.linears] for run in (one, other)
    ]
    losses = [(ours.loss, theirs.loss) for ours, theirs in zip(*linears, strict=True) if ours.loss and theirs.loss]
    loss = max((abs(theirs / ours - 1) for ours, theirs in losses), default=float("nan"))
    scores = [language_scores(run / "evaluation" / "parallel.parquet") for run in (one, other)]
    perplexity = max(abs(scores[1][code].perplexity / score.perplexity - 1) for code, score in scores[0].items())
    agreeing = counted = 0
    for mine, shared in zip(blocks(one), blocks(other), strict=True):
        theirs = load_file(shared)
        for name, tensor in load_file(mine).items():
            agreeing += int(((tensor == 0) == (theirs[name] == 0)).sum())
            counted += tensor.numel()
    return loss, perplexity, agreeing / counted


def exchange_shares(timeline: Path) -> str:
    """Of the time of the slower replica."""
    spans = pd.read_parquet(timeline)
    spans["seconds"] = spans["end"] - spans["begin"]
    whole = float(spans["end"].max() - spans["begin"].min())
    by_part = spans.groupby(["replica", "part"])["seconds"].sum().div(whole).unstack(fill_value=0.0)
    parts = [part for part in ("reduce", "broadcast", "meet") if part in by_part]
    return ", ".join(f"{part} {by_part[part].mean():.1%}" for part in parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--segments", type=int, default=2048)
    arguments = parser.parse_args()
    out, progress = arguments.out.resolve(), Progress(Console(file=io.StringIO()))
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    # Segments and dense scores, and all libraries loaded.
    conduct(spec("first", {"name": "rtn", "bits": 3}, 1, arguments.segments), out, None, progress)
    print(
        "| method | wall s, 1 replica | 2 | ratio | exchange | loss differs by | perplexity by | mask agrees | "
        "2 replicas twice |\n|---|---:|---:|---:|---|---:|---:|---:|---|"
    )
    for what, method in _METHODS.items():
        runs, walls = [], []
        for attempt, replicas in enumerate((1, 2, 2)):
            name = f"{method['name']}-{attempt}"
            begun = time.monotonic()
            conduct(spec(name, method, replicas, arguments.segments), out, None, progress)
            walls.append(time.monotonic() - begun)
            (run,) = (out / name / "runs").iterdir()
            runs.append(run)
        loss, perplexity, mask = largest_difference(runs[0], runs[1])
        same = "same bits" if bits(runs[1]) == bits(runs[2]) else "OTHER BITS"
        shared = min(walls[1:])
        print(
            f"| {what} | {walls[0]:.1f} | {shared:.1f} | {shared / walls[0]:.2f} | "
            f"{exchange_shares(runs[1].parents[1] / 'timeline.parquet')} | {loss:.1e} | {perplexity:.1e} | "
            f"{mask:.4%} | {same} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
