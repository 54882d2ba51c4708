"""``mbs compare | report | verify | export``: what is asked of finished runs. None needs Ray."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from mbs_ray.cli.inputs import one_line_errors
from mbs_ray.errors import InputError

app = typer.Typer()


@app.command(
    epilog="Example: mbs compare ./results/demo/runs/wanda-50-equal ./results/demo/runs/wanda-50-proportional   "
    "(or one run against its dense model: mbs compare ./results/demo/runs/wanda-50-equal --dense)"
)
def compare(
    run_a: Annotated[
        Path,
        typer.Argument(help="Directory of a finished run, <out>/<sweep>/runs/<run>, or a folder with tasks.json."),
    ],
    run_b: Annotated[Path | None, typer.Argument(help="Another one, scored on the same tokens or tasks.")] = None,
    dense: Annotated[bool, typer.Option("--dense", help="Compare RUN_A, as B, with its dense model, as A.")] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder for figures and tables; default: B's directory, comparisons in a run's."),
    ] = None,
) -> None:
    """Is B worse than A, language by language, or is the difference noise? Needs no Ray."""
    with one_line_errors():
        from mbs_ray.cli.terminal_tables import comparison_table, paired_table
        from mbs_ray.report.compare import compare_runs, compare_with_dense
        from mbs_ray.report.compare_tasks import compare_tasks, has_tasks

        if (run_b is None) != dense:
            raise InputError("give either RUN_B or --dense to compare RUN_A with")
        console = Console()
        if run_b is not None and (has_tasks(run_a) or has_tasks(run_b)):
            found = compare_tasks(run_a, run_b, out)
            console.print(f"A: {found.a}\nB: {found.b}", highlight=False)
            console.print(paired_table("B against A on the same questions", found.rows))
            console.print(f"written: {found.file}", highlight=False, soft_wrap=True)
            return
        for one in compare_with_dense(run_a, out) if run_b is None else compare_runs(run_a, run_b, out):
            console.print(f"A: {one.a}\nB: {one.b}", highlight=False)
            console.print(comparison_table(f"B against A on {one.evaluation}", one.differences))
            console.print(f"written: {one.figure}", highlight=False, soft_wrap=True)


@app.command(epilog="Example: mbs report ./results/bloom-560m   (then open ./results/bloom-560m/report.html)")
def report(
    folder: Annotated[Path, typer.Argument(metavar="SWEEP", help="Folder of a sweep: <out>/<sweep>.")],
    out: Annotated[Path | None, typer.Option("--out", help="The page; default: <SWEEP>/report.html.")] = None,
) -> None:
    """Write the results of a sweep as one self-contained HTML page, as every sweep does at its end. Needs no Ray."""
    with one_line_errors():
        from mbs_ray.report.page import write_report_page
        from mbs_ray.tracking.replay import track_report

        page = write_report_page(folder, out)
        if said := track_report(folder, page):
            typer.echo(said)
        typer.echo(f"written: {page}")


@app.command(epilog="Example: mbs verify ./results/compress/runs/gptq-4bit-g128-equal")
def verify(
    folder: Annotated[Path, typer.Argument(help="A checkpoint that mbs wrote, or the directory of a finished run.")],
) -> None:
    """Check that a checkpoint is whole: compare every file with its sha256 in manifest.json. Needs no Ray."""
    with one_line_errors():
        from mbs_ray.model.manifest import MANIFEST
        from mbs_ray.model.manifest import verify as compare_files
        from mbs_ray.run.directory import RunDirectory

        run = RunDirectory(folder)
        if run.stored_signature() is not None:
            run.finished()
        checkpoint = folder if (folder / MANIFEST).is_file() else run.checkpoint
        verdict = compare_files(checkpoint)
        if wrong := verdict.wrong:
            raise InputError(f"{checkpoint}: {len(wrong)} of {verdict.files} files are wrong: {'; '.join(wrong)}")
        typer.echo(f"{checkpoint}: {verdict.files} files, all as written")
        if verdict.beside:
            typer.echo(f"beside them, not in the manifest: {', '.join(verdict.beside)}")


@app.command(epilog="Example: mbs export ./results/compress/runs/gptq-4bit-g128-equal --format compressed-tensors")
def export(
    run: Annotated[Path, typer.Argument(help="Directory of a finished run: <out>/<sweep>/runs/<run>.")],
    form: Annotated[
        str,
        typer.Option(
            "--format",
            help="compressed-tensors (integers, for transformers and vLLM; quantized runs) or safetensors (dense).",
        ),
    ],
    to: Annotated[Path | None, typer.Option("--to", help="New folder; default: <run>/export/<format>.")] = None,
    reader: Annotated[
        str, typer.Option("--reader", help="Program that is to load the integers: transformers or vllm.")
    ] = "transformers",
) -> None:
    """Convert the checkpoint of a finished run into a form that others load. Needs no Ray."""
    with one_line_errors():
        from mbs_ray.run.export import export_run

        typer.echo(f"written: {export_run(run, form, to, reader)}")
