"""Perplexity of the stages against that of the checkpoint reloaded in plain transformers: architectures × methods.

``python -m benchmarks.models.architectures OUT``, in the root of the repository: the models are those of the tests,
small and random, so that the numbers tell whether two ways through a model agree, not what a method costs. Two threads.
"""

import argparse
import json
from pathlib import Path

from rich.console import Console

from mbs_ray.driver.progress import Progress
from mbs_ray.driver.sweep import conduct
from mbs_ray.evaluation.perplexity import geometric_mean
from mbs_ray.run.sweep_spec import SweepSpec, validated
from mbs_ray.text.segment_file import SegmentSet
from tests.support.architectures import CONFIGS, plain_perplexities, write_architecture
from tests.support.models import HELD_OUT, TEXTS, write_corpus

METHODS = {
    "wanda-50": {"name": "wanda", "sparsity": 0.5},
    "sparsegpt-50": {"name": "sparsegpt", "sparsity": 0.5},
    "gptq-3bit-g16": {"name": "gptq", "bits": 3, "group_size": 16},
}


def sweep(out: Path, models: list[Path]) -> SweepSpec:
    run = {
        "corpus": str(write_corpus(out / "corpus")),
        "languages": list(TEXTS),
        "segments": 16,
        "sequence_length": 48,
        "sampling": "equal",
        "evaluation": {"held-out": {"corpus": str(write_corpus(out / "held-out", 25, first=HELD_OUT)), "segments": 8}},
    }
    grid = {"model": [str(folder) for folder in models], "method": list(METHODS.values())}
    layout = {"stages": 2}
    return validated(SweepSpec, {"name": "architectures", "run": run, "grid": grid, "layout": layout, "threads": 1})


def row(model: Path, method: str, folder: Path) -> str:
    """One run: geometric means over the languages, and the language that differs most."""
    result = json.loads((folder / "result.json").read_text())
    segments = SegmentSet.open(folder.parents[2] / "segments" / f"{result['evaluation']['held-out'][:16]}.parquet")
    staged = {language: result["metrics"][f"ppl/{language}"] for language in TEXTS}
    plain = plain_perplexities(folder / "checkpoint", segments)
    dense = geometric_mean(plain_perplexities(model, segments))
    apart = max(abs(staged[language] / plain[language] - 1) for language in TEXTS)
    means = f"{dense:.3f} | {geometric_mean(staged):.3f} | {geometric_mean(plain):.3f}"
    return f"| {model.name} | {method} | {means} | {apart:.0e} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out.resolve()
    models = [write_architecture(out / "models" / name, name) for name in CONFIGS]
    if failed := conduct(sweep(out, models), out, None, Progress(Console(stderr=True))).failed:
        raise SystemExit(f"failed: {failed}")
    print("| model | method | dense | stages | reloaded | largest relative difference |")
    print("|---|---|---:|---:|---:|---:|")
    for model in models:
        for method in METHODS:
            print(row(model, method, out / "architectures" / "runs" / f"{model.name}-{method}-equal"))


if __name__ == "__main__":
    main()
