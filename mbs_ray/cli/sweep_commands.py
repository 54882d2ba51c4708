"""``mbs compress | sweep | demo``: what compresses models."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from mbs_ray.cli.cluster_arguments import CLUSTER, FILE_DEVICE, FILE_OFFLOAD, with_cluster, without
from mbs_ray.cli.inputs import TEXT_COLUMN, Begin, absolute, evaluation_sets, given, on_ray, with_text_column
from mbs_ray.cli.options import Chat, Force, Out, TakeOver, TextColumn
from mbs_ray.cli.run_options import RunCommand, run_fields
from mbs_ray.cluster.cluster_options import ClusterOptions

app = typer.Typer()


@app.command(
    cls=RunCommand,
    epilog="Example: mbs compress --model ./bloom-560m --corpus ./corpus --evaluate ./validation "
    "--method sparsegpt:sparsity=0.5 --sampling proportional --out ./results",
)
@with_cluster()
def compress(
    context: typer.Context,
    *,
    out: Out,
    text_column: TextColumn = TEXT_COLUMN,
    chat: Chat = None,
    evaluate: Annotated[
        list[Path] | None, typer.Option("--evaluate", help="Folder with text to score; may be repeated.")
    ] = None,
    evaluation_segments: Annotated[
        int, typer.Option("--evaluation-segments", min=1, help="At most this many segments per language.")
    ] = 64,
    name: Annotated[
        str, typer.Option("--name", help="Name of the folder under --out and of the MLflow experiment.")
    ] = "compress",
    cluster: ClusterOptions,
    force: Force = False,
    take_over: TakeOver = False,
) -> None:
    """Compress one model with one method and one sampling: a sweep of a single run."""
    with on_ray(cluster.address) as begin:
        from mbs_ray.run.sweep_spec import SweepSpec, validated

        run = run_fields(context.obj)
        run["corpus"] = with_text_column(run["corpus"], text_column, chat)
        run["evaluation"] = evaluation_sets(evaluate or [], evaluation_segments, text_column, chat)
        spec = validated(SweepSpec, {"name": name, "run": run, **_arranged(cluster)})
        _conduct(begin, spec, out, cluster, force, take_over)


@app.command(
    epilog="Example: mbs sweep jobs/sweeps/bloom-560m.yaml --out ./results   (the same command again: resumes)"
)
@with_cluster({**without("threads"), "device": FILE_DEVICE, "offload": FILE_OFFLOAD})
def sweep(
    file: Annotated[Path, typer.Argument(help="Sweep file in YAML; see jobs/sweeps/.")],
    *,
    out: Out,
    cluster: ClusterOptions,
    force: Force = False,
    take_over: TakeOver = False,
) -> None:
    """Run the grid of a sweep file, or resume it: finished runs are kept, unfinished ones continue."""
    with on_ray(cluster.address) as begin:
        from mbs_ray.run.sweep_spec import SweepSpec, load_sweep, validated

        content = load_sweep(file).model_dump()
        arranged = _arranged(cluster)
        content |= arranged | {"layout": content["layout"] | arranged["layout"]}
        _conduct(begin, validated(SweepSpec, content), out, cluster, force, take_over)


@app.command(epilog="Example: mbs demo --out ./mbs-demo   (then: mbs ui ./mbs-demo)")
@with_cluster({name: CLUSTER[name] for name in ("address", "wait")})
def demo(
    out: Out = Path("mbs-demo"),
    model: Annotated[
        list[Path] | None, typer.Option("--model", help="Checkpoint instead of the package's; may be repeated.")
    ] = None,
    *,
    cluster: ClusterOptions,
    take_over: TakeOver = False,
) -> None:
    """Compress the package's small BLOOMs with three methods × three samplings: what does each language lose?"""
    with on_ray(cluster.address) as begin:
        from mbs_ray.cli.demo import demo_sentence, demo_sweep, packaged_models, shown_views

        spec = demo_sweep(model or packaged_models())
        _conduct(begin, spec, out, cluster, take_over=take_over, conclusion=demo_sentence, shown=shown_views)


def _arranged(cluster: ClusterOptions) -> dict[str, Any]:
    """Select the given fields of a sweep that say how its actors are arranged."""
    return {
        "layout": given(stages=cluster.stages, replicas=cluster.replicas),
        **given(threads=cluster.threads, device=cluster.device, offload=cluster.offload, nvme_path=cluster.nvme_path),
    }


def _conduct(
    begin: Begin,
    spec: Any,
    out: Path,
    cluster: ClusterOptions,
    force: bool = False,
    take_over: bool = False,
    conclusion: Callable[[Any], str] | None = None,
    shown: Callable[[Any], Iterable[Table]] | None = None,
) -> None:
    """Conduct a sweep and show its results: the views of ``shown`` or all, the sentence that ``conclusion`` makes."""
    from mbs_ray.cli.interruption import finished_runs, told_of_interruption
    from mbs_ray.driver.requested_cluster import requested_cluster
    from mbs_ray.run.sweep_folders import SweepFolders

    console, folder = Console(), absolute(out)
    with told_of_interruption(lambda: finished_runs(spec, folder)):
        pool = begin(requested_cluster(spec, cluster, SweepFolders(folder, spec.name)))
        # Loads much more, while stages do.
        from mbs_ray.driver.progress import Progress
        from mbs_ray.driver.sweep import conduct

        progress = Progress(console)
        result = conduct(spec, folder, cluster.address, progress, force, take_over, pool, cluster.wait)
        views = shown(result) if shown else _all_views(result, console.width)
        _show(result, views, out, console, conclusion(result) if conclusion else "")


def _all_views(result: Any, width: int) -> Iterator[Table]:
    from mbs_ray.cli.terminal_tables import increase_title, increase_views

    for title, table in result.tables.items():
        yield from increase_views(increase_title(title), table, width, result.spreads.get(title))


def _show(result: Any, views: Iterable[Table], out: Path, console: Console, conclusion: str) -> None:
    """Print tables, the conclusion, and where everything is. Exit code 1 where runs failed."""
    for view in views:
        console.print(view)
    if conclusion:
        console.print(conclusion, highlight=False, markup=False)
    for label, reason in result.failed.items():
        typer.echo(f"failed: {label}: {reason}", err=True)
    for path in [*result.figures, *result.files]:
        console.print(f"written: {path}", highlight=False, soft_wrap=True)
    console.print(f"tracking: {result.tracking_uri}   (mbs ui {out})", highlight=False, soft_wrap=True)
    if result.failed:
        raise typer.Exit(1)
