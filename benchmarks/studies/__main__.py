"""``python -m benchmarks.studies RESULTS IMAGES``: figures and tables of all studies whose sweeps lie in RESULTS.

The sweeps: ``mbs sweep jobs/studies/mini/NAME.yaml --out RESULTS``, one after the other.
"""

import argparse
from pathlib import Path

import pandas as pd

from benchmarks.studies import (
    adaptive,
    amounts,
    budget,
    dense,
    experts,
    families,
    fit,
    hessian,
    monolingual,
    pairs,
    refine,
    resistance,
    seeds,
    temperature,
)
from benchmarks.studies.similarity import similarities
from mbs_ray.report.figures.canvas import save_figure


def markdown(table: pd.DataFrame) -> str:
    """The table in Markdown, its index as first columns."""
    names = [str(name or "") for name in table.index.names]
    names = names if any(names) else [""] * table.index.nlevels
    lines = ["| " + " | ".join([*names, *map(str, table.columns)]) + " |"]
    lines.append("|" + "---|" * len(names) + "---:|" * len(table.columns))
    for key, row in table.iterrows():
        keys = key if isinstance(key, tuple) else (key,)
        lines.append("| " + " | ".join(map(str, [*keys, *row])) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("images", type=Path)
    arguments = parser.parse_args()
    results, images = arguments.results, arguments.images

    def there(sweep: str) -> bool:
        return (results / sweep / "runs").is_dir()

    for name, study in {
        "resistance": (resistance, "seeds"),
        "budget": (budget, "budget"),
        "temperature": (temperature, "temperature"),
        "seeds": (seeds, "seeds"),
        "pairs": (pairs, "pairs"),
        "dense": (dense, "dense-moments"),
        "refine": (refine, "refine"),
        "fit-to-dense": (fit, "fit-to-dense"),
    }.items():
        module, sweep = study
        if there(sweep):
            print(f"## {name}\n\n{markdown(module.table(results / sweep))}", flush=True)
            save_figure(module.figure(results / sweep), images / f"{name}.png")
    if there("dense-moments"):
        print(f"## dense, by language\n\n{markdown(dense.by_language(results / 'dense-moments'))}", flush=True)
    if there("fit-and-refine"):
        save_figure(fit.figure_by_size(results / "fit-to-dense"), images / "fit-by-size.png")
        print(f"## fitted and refined\n\n{markdown(fit.together(results / 'fit-to-dense'))}", flush=True)
    if there("budgets"):
        for name, table in amounts.tables(results).items():
            print(f"## budgets: {name}\n\n{markdown(table)}", flush=True)
        save_figure(amounts.figure(results), images / "budgets.png")
    for name, module in {"refine-kept-out": refine, "fit-kept-out": fit}.items():
        if there(name):
            print(f"## {name}\n\n{markdown(module.kept_out(results / name))}", flush=True)
    if there("experts"):
        sweep = results / "experts"
        print(f"## experts: tokens\n\n{markdown(experts.reached(sweep))}", flush=True)
        print(f"## experts: borrowing\n\n{markdown(experts.borrowing(sweep))}", flush=True)
        print(f"## experts: do languages pay?\n\n{experts.payers(sweep)}", flush=True)
        if there("experts-further"):
            more = results / "experts-further"
            print(f"## experts: further segments\n\n{markdown(experts.further(more))}", flush=True)
            for method in ("sparsegpt-50", "gptq-3bit-g64"):
                own = experts.by_language(sweep, more, method)
                print(f"## experts: languages, {method}\n\n{markdown(own)}", flush=True)
    if there("demo-bloom") and there("demo-qwen3"):
        both = [results / "demo-bloom", results / "demo-qwen3"]
        print(f"## families\n\n{markdown(families.table(both))}\n\n{families.alike(both)}", flush=True)
        save_figure(families.figure(both, ("bloom-mini-5m", "qwen3-5m")), images / "families.png")
    if there("mixtures"):
        sweeps = [results / name for name in ("mixtures", "adaptive-english") if there(name)]
        print(f"## adaptive\n\n{markdown(adaptive.table(sweeps))}", flush=True)
        print(f"## adaptive: won / within noise / lost\n\n{markdown(adaptive.verdicts(sweeps))}", flush=True)
        print(f"## predicted and measured\n\n{markdown(adaptive.prediction(sweeps[0]))}", flush=True)
        save_figure(adaptive.figure(sweeps), images / "adaptive.png")
    if there("seeds"):
        print(f"## what one seed leaves open\n\n{markdown(seeds.spread(results / 'seeds'))}", flush=True)
    if there("monolingual"):
        similar = similarities(results / "monolingual", results / "segments")
        print(f"## monolingual\n\n{markdown(monolingual.table(results / 'monolingual', similar))}", flush=True)
        for model in similar:
            save_figure(monolingual.figure(results / "monolingual", model), images / f"monolingual-{model}.png")
    if there("seeds") and there("temperature") and there("corpus"):
        sweeps = [results / "seeds", results / "temperature"]
        distance = hessian.distances(sweeps, results / "segments", results / "corpus")
        print(f"## hessian\n\n{markdown(hessian.table(sweeps, distance))}", flush=True)
        save_figure(hessian.figure(sweeps, distance), images / "hessian.png")


if __name__ == "__main__":
    main()
