"""``mbs compress | sweep | demo``: what compresses models."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from mbs_ray.cli.inputs import TEXT_COLUMN, absolute, corpus_given, evaluation_sets, given, model_given, one_line_errors
from mbs_ray.cli.named_spec import named_spec
from mbs_ray.cli.options import (
    METHOD_HELP,
    SAMPLING_HELP,
    Address,
    ComputeDtype,
    Distribution,
    FileOffloadTier,
    Force,
    Languages,
    NvmePath,
    OffloadTier,
    Out,
    Replicas,
    Revision,
    SequenceLength,
    Stages,
    TextColumn,
    Threads,
)

app = typer.Typer()


@app.command(
    epilog="Example: mbs compress --model ./bloom-560m --corpus ./corpus --evaluate ./validation "
    "--method sparsegpt:sparsity=0.5 --sampling proportional --out ./results"
)
def compress(
    model: Annotated[str, typer.Option("--model", help="Folder of a checkpoint, or a hub id.")],
    corpus: Annotated[Path, typer.Option("--corpus", help="Folder of <language>.parquet|.jsonl|.txt")],
    method: Annotated[str, typer.Option("--method", help=METHOD_HELP)],
    out: Out,
    sampling: Annotated[str, typer.Option("--sampling", help=SAMPLING_HELP)] = "proportional",
    evaluate: Annotated[
        list[Path] | None, typer.Option("--evaluate", help="Folder with text to score; may be repeated.")
    ] = None,
    text_column: TextColumn = TEXT_COLUMN,
    name: Annotated[
        str, typer.Option("--name", help="Of the folder under --out and the MLflow experiment.")
    ] = "compress",
    revision: Revision = None,
    languages: Languages = "paper",
    distribution: Distribution = None,
    segments: Annotated[int, typer.Option("--segments", min=1, help="Calibration segments in all.")] = 256,
    sequence_length: SequenceLength = 2048,
    evaluation_segments: Annotated[
        int, typer.Option("--evaluation-segments", min=1, help="At most so many per language.")
    ] = 64,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the drawing of text.")] = 0,
    allow_repeat: Annotated[
        bool, typer.Option("--allow-repeat", help="Draw overlapping windows where text is short.")
    ] = False,
    compute_dtype: ComputeDtype = "auto",
    microbatch: Annotated[str, typer.Option("--microbatch", help="Segments in one forward, or auto.")] = "auto",
    true_sequential: Annotated[
        bool, typer.Option("--true-sequential", help="Linears of a block see those before them compressed.")
    ] = False,
    per_language: Annotated[
        bool, typer.Option("--per-language", help="Measure what every linear loses in each calibration language.")
    ] = False,
    statistics: Annotated[
        str, typer.Option("--statistics", help="propagated, or dense:segments_per_language=16: of the dense model.")
    ] = "propagated",
    stages: Stages = None,
    replicas: Replicas = None,
    threads: Threads = None,
    offload: OffloadTier = "auto",
    nvme_path: NvmePath = None,
    keep: Annotated[
        Literal["checkpoint", "metrics"], typer.Option("--keep", help="metrics: the weights go when it is finished.")
    ] = "checkpoint",
    force: Force = False,
    address: Address = None,
) -> None:
    """Compress one model with one method and one sampling: a sweep of a single run."""
    from mbs_ray.run.sweep_spec import SweepSpec, validated

    with one_line_errors():
        run = {
            "model": model_given(model),
            "revision": revision,
            "distribution": distribution,
            "languages": languages,
            "corpus": corpus_given(corpus, text_column),
            "method": named_spec(method),
            "sampling": named_spec(sampling),
            "segments": segments,
            "sequence_length": sequence_length,
            "seed": seed,
            "allow_repeat": allow_repeat,
            "evaluation": evaluation_sets(evaluate or [], evaluation_segments, text_column),
            "compute_dtype": compute_dtype,
            "microbatch": int(microbatch) if microbatch.isdigit() else microbatch,
            "statistics": named_spec(statistics, "mode"),
            "true_sequential": true_sequential,
            "per_language": per_language,
            "keep": keep,
        }
        content = {
            "name": name,
            "run": run,
            "layout": given(stages=stages, replicas=replicas),
            "threads": threads or "auto",
            "offload": offload,
            "nvme_path": nvme_path and nvme_path.absolute(),
        }
        _conduct(validated(SweepSpec, content), out, address, force)


@app.command(
    epilog="Example: mbs sweep jobs/sweeps/bloom-560m.yaml --out ./results   (again the same command: goes on)"
)
def sweep(
    file: Annotated[Path, typer.Argument(help="Sweep file in YAML; see jobs/sweeps/.")],
    out: Out,
    stages: Stages = None,
    replicas: Replicas = None,
    offload: FileOffloadTier = None,
    nvme_path: NvmePath = None,
    force: Force = False,
    address: Address = None,
) -> None:
    """Run a grid of runs, or go on with it: finished runs are kept, begun ones continued."""
    from mbs_ray.run.sweep_spec import SweepSpec, load_sweep, validated

    with one_line_errors():
        content = load_sweep(file).model_dump()
        content["layout"] |= given(stages=stages, replicas=replicas)
        content |= given(offload=offload, nvme_path=nvme_path and nvme_path.absolute())
        _conduct(validated(SweepSpec, content), out, address, force)


@app.command(epilog="Example: mbs demo --out ./mbs-demo   (then: mbs ui ./mbs-demo)")
def demo(
    out: Out = Path("mbs-demo"),
    model: Annotated[list[Path] | None, typer.Option("--model", help="Instead of the package's; repeatable.")] = None,
    address: Address = None,
) -> None:
    """Compress the package's small BLOOMs with three methods × three samplings: what does each language lose?"""
    with one_line_errors():
        from mbs_ray.cli.demo import demo_sentence, run_demo

        console = Console()
        result = run_demo(absolute(out), address, console, model)
        _show(result, out, console, demo_sentence(result))


def _conduct(spec: Any, out: Path, address: str | None, force: bool) -> None:
    from mbs_ray.driver.progress import Progress
    from mbs_ray.driver.sweep import conduct

    console = Console()
    _show(conduct(spec, absolute(out), address, Progress(console), force), out, console)


def _show(result: Any, out: Path, console: Console, conclusion: str = "") -> None:
    """Tables, what they show, and where everything is. Exit code 1 where runs failed."""
    from mbs_ray.cli.terminal_tables import increase_views

    for title, table in result.tables.items():
        for view in increase_views(f"perplexity increase: {title}", table, console.width):
            console.print(view)
    if conclusion:
        console.print(conclusion, highlight=False, markup=False)
    for path in [*result.figures, *result.files]:
        console.print(f"written: {path}", highlight=False, soft_wrap=True)
    console.print(f"tracking: {result.tracking_uri}   (mbs ui {out})", highlight=False, soft_wrap=True)
    for label, reason in result.failed.items():
        typer.echo(f"failed: {label}: {reason}", err=True)
    if result.failed:
        raise typer.Exit(1)
