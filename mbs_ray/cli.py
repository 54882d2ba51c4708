"""The command line: ``mbs allocate | compress | sweep | evaluate | similarity | compare | report | export | …``."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from mbs_ray.arguments import named_spec
from mbs_ray.errors import InputError, StageDiedError
from mbs_ray.options import (
    METHOD_HELP,
    SAMPLING_HELP,
    Address,
    ComputeDtype,
    Distribution,
    FileOffloadTier,
    Languages,
    NvmePath,
    OffloadTier,
    Out,
    Replicas,
    Revision,
    SequenceLength,
    Stages,
    Threads,
)

app = typer.Typer(
    name="mbs",
    help="Multilingual Brain Surgeon on Ray: compress multilingual language models, language by language.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


@app.command(epilog="Example: mbs allocate --model bigscience/bloom-7b1 --sampling proportional --segments 256")
def allocate(
    model: Annotated[str, typer.Option("--model", help="Folder of a checkpoint, or a hub id.")],
    sampling: Annotated[str, typer.Option("--sampling", help=SAMPLING_HELP)] = "proportional",
    segments: Annotated[int, typer.Option("--segments", min=1, help="Segments in all.")] = 256,
    languages: Languages = "paper",
    distribution: Distribution = None,
) -> None:
    """Show how many calibration segments each language gets. Needs no network and no Ray."""
    from mbs_ray.calibration.sampling import build_sampling, distribution_for
    from mbs_ray.languages import parse_languages
    from mbs_ray.tables import allocation_table

    with _one_line_errors():
        built = build_sampling(named_spec(sampling))
        known = distribution_for(built, model, distribution)
        asked = parse_languages(languages, known)
        allocation = built.allocate(known, asked, segments)
        title = f"{segments} segments, {sampling}, {known.source if known else 'distribution unknown'}"
        Console().print(allocation_table(title, allocation, known.shares(asked) if known else {}))


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
    stages: Stages = None,
    replicas: Replicas = None,
    threads: Threads = None,
    offload: OffloadTier = "auto",
    nvme_path: NvmePath = None,
    address: Address = None,
) -> None:
    """Compress one model with one method and one sampling: a sweep of a single run."""
    from mbs_ray.specs import SweepSpec, validated

    with _one_line_errors():
        run = {
            "model": _model(model),
            "revision": revision,
            "distribution": distribution,
            "languages": languages,
            "corpus": str(corpus.resolve()),
            "method": named_spec(method),
            "sampling": named_spec(sampling),
            "segments": segments,
            "sequence_length": sequence_length,
            "seed": seed,
            "allow_repeat": allow_repeat,
            "evaluation": _evaluation(evaluate or [], evaluation_segments),
            "compute_dtype": compute_dtype,
            "microbatch": int(microbatch) if microbatch.isdigit() else microbatch,
        }
        content = {
            "name": name,
            "run": run,
            "layout": _given(stages=stages, replicas=replicas),
            "threads": threads or "auto",
            "offload": offload,
            "nvme_path": nvme_path and nvme_path.absolute(),
        }
        _conduct(validated(SweepSpec, content), out, address)


@app.command(
    epilog="Example: mbs evaluate ./bloom-560m --corpus ./validation --out ./results   "
    "or: mbs evaluate ./bloom-560m --tasks xnli,xcopa,xstorycloze --out ./results"
)
def evaluate(
    model: Annotated[str, typer.Argument(help="Folder of a checkpoint, or a hub id.")],
    out: Out,
    corpus: Annotated[
        list[Path] | None, typer.Option("--corpus", help="Folder with text to score; may be repeated.")
    ] = None,
    revision: Revision = None,
    languages: Languages = "paper",
    segments: Annotated[
        int | None, typer.Option("--segments", min=1, help="At most so many per language; default: all text.")
    ] = None,
    sequence_length: SequenceLength = 2048,
    tasks: Annotated[
        str | None, typer.Option("--tasks", help="Of lm-evaluation-harness, or groups of them: xnli,xcopa,pawsx")
    ] = None,
    shots: Annotated[int, typer.Option("--shots", min=0, help="Examples before each question of a task.")] = 0,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="At most so many questions of a task, for a quick look.")
    ] = None,
    include_path: Annotated[
        Path | None, typer.Option("--include-path", help="Folder with task files of your own, for --tasks.")
    ] = None,
    compute_dtype: ComputeDtype = "auto",
    stages: Stages = None,
    replicas: Replicas = None,
    threads: Threads = None,
    offload: OffloadTier = "auto",
    nvme_path: NvmePath = None,
    address: Address = None,
) -> None:
    """Score a checkpoint, dense or compressed, language by language.

    --corpus: perplexity and bits per byte. --tasks: accuracy.
    """
    with _one_line_errors():
        from mbs_ray.cluster.offload import Offload
        from mbs_ray.progress import Progress

        if not corpus and tasks is None:
            raise InputError("nothing to score: give --corpus with text, or --tasks, or both")
        console = Console()
        how: dict[str, Any] = {
            "revision": revision,
            "compute_dtype": compute_dtype,
            "stages": stages,
            "replicas": replicas,
            "threads": threads,
            "out": _absolute(out),
            "address": address,
            "progress": Progress(console),
            "offload": Offload(offload, nvme_path and nvme_path.absolute()),
        }
        if corpus:
            _score_text(_model(model), _evaluation(corpus, segments), sequence_length, languages, how)
        if tasks is not None:
            names = [name.strip() for name in tasks.split(",") if name.strip()]
            _score_tasks(_model(model), names, {"shots": shots, "limit": limit, "include_path": include_path}, how)


@app.command(epilog="Example: mbs similarity ./bloom-560m ./corpus --languages en,hi,ur,sw --out ./results")
def similarity(
    model: Annotated[str, typer.Argument(help="Folder of a checkpoint, or a hub id.")],
    corpus: Annotated[Path, typer.Argument(help="Folder of <language>.parquet|.jsonl|.txt")],
    out: Out,
    revision: Revision = None,
    languages: Languages = "paper",
    segments: Annotated[int, typer.Option("--segments", min=2, help="Segments of each language.")] = 16,
    sequence_length: SequenceLength = 2048,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the drawing of text.")] = 0,
    compute_dtype: ComputeDtype = "auto",
    threads: Threads = None,
    address: Address = None,
) -> None:
    """Measure how alike languages are inside a dense model: angles between the inputs of its blocks, and clusters."""
    with _one_line_errors():
        from mbs_ray.progress import Progress
        from mbs_ray.similarity import language_similarity
        from mbs_ray.tables import similarity_table

        console = Console()
        result = language_similarity(
            _model(model),
            str(corpus.resolve()),
            revision=revision,
            languages=languages,
            segments=segments,
            sequence_length=sequence_length,
            seed=seed,
            compute_dtype=compute_dtype,
            threads=threads,
            out=_absolute(out),
            address=address,
            progress=Progress(console),
        )
        for block in (0, result.similarity.blocks - 1):
            title = f"{Path(model).name}, input of block {block}"
            console.print(similarity_table(title, result.similarity, block))
        for path in result.files:
            console.print(f"written: {path}", highlight=False, soft_wrap=True)
        console.print(f"tracking: {result.tracking_uri}   (mbs ui {out})", highlight=False, soft_wrap=True)
        if not result.tracked:
            console.print("MLflow has not taken everything yet; the same command tries again")


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
    address: Address = None,
) -> None:
    """Run a grid of runs, or go on with it: finished runs are kept, begun ones continued."""
    from mbs_ray.specs import SweepSpec, load_sweep, validated

    with _one_line_errors():
        content = load_sweep(file).model_dump()
        content["layout"] |= _given(stages=stages, replicas=replicas)
        content |= _given(offload=offload, nvme_path=nvme_path and nvme_path.absolute())
        _conduct(validated(SweepSpec, content), out, address)


@app.command(
    epilog="Example: mbs compare ./results/demo/runs/wanda-50-equal ./results/demo/runs/wanda-50-proportional   "
    "(or one run against its dense model: mbs compare ./results/demo/runs/wanda-50-equal --dense)"
)
def compare(
    run_a: Annotated[Path, typer.Argument(help="Directory of a finished run: <out>/<sweep>/runs/<run>.")],
    run_b: Annotated[Path | None, typer.Argument(help="Another one, scored on the same tokens.")] = None,
    dense: Annotated[bool, typer.Option("--dense", help="Compare RUN_A, as B, with its dense model, as A.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for the figures; default: <B's directory>/comparisons.")
    ] = None,
) -> None:
    """Is B worse than A, language by language, or is the difference noise? Needs no Ray."""
    with _one_line_errors():
        from mbs_ray.compare import compare_runs, compare_with_dense
        from mbs_ray.tables import comparison_table

        if (run_b is None) != dense:
            raise InputError("give either RUN_B or --dense to compare RUN_A with")
        console = Console()
        for one in compare_with_dense(run_a, out) if run_b is None else compare_runs(run_a, run_b, out):
            console.print(f"A: {one.a}\nB: {one.b}", highlight=False)
            console.print(comparison_table(f"B against A on {one.evaluation}", one.differences))
            console.print(f"written: {one.figure}", highlight=False, soft_wrap=True)


@app.command(epilog="Example: mbs report ./results/bloom-560m   (then open ./results/bloom-560m/report.html)")
def report(
    folder: Annotated[Path, typer.Argument(metavar="SWEEP", help="Folder of a sweep: <out>/<sweep>.")],
    out: Annotated[Path | None, typer.Option("--out", help="The page; default: <SWEEP>/report.html.")] = None,
) -> None:
    """Show a sweep as one HTML page that needs nothing else. Needs no Ray; every sweep ends with it."""
    with _one_line_errors():
        from mbs_ray.report_page import write_report
        from mbs_ray.track_runs import track_report

        page = write_report(folder, out)
        typer.echo(f"written: {page}")
        if said := track_report(folder, page):
            typer.echo(said)


@app.command(epilog="Example: mbs verify ./results/compress/runs/gptq-4bit-g128-equal")
def verify(
    folder: Annotated[Path, typer.Argument(help="A checkpoint that mbs wrote, or the directory of a finished run.")],
) -> None:
    """Is a checkpoint whole? Compares every file with its sha256 in manifest.json."""
    with _one_line_errors():
        from mbs_ray.model.manifest import MANIFEST
        from mbs_ray.model.manifest import verify as wrong_files
        from mbs_ray.run_directory import RunDirectory

        checkpoint = folder if (folder / MANIFEST).is_file() else RunDirectory(folder).checkpoint
        wrong, files = wrong_files(checkpoint)
        if wrong:
            raise InputError(f"{checkpoint}: {len(wrong)} of {files} files are wrong: {'; '.join(wrong)}")
        Console().print(f"{checkpoint}: {files} files, all as written", highlight=False, soft_wrap=True)


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
) -> None:
    """Convert the checkpoint of a finished run into a form that others load. Needs no Ray."""
    with _one_line_errors():
        from mbs_ray.export_run import export_run

        typer.echo(f"written: {export_run(run, form, to)}")


@app.command(epilog="Example: mbs demo --out ./mbs-demo   (then: mbs ui ./mbs-demo)")
def demo(
    out: Out = Path("mbs-demo"),
    model: Annotated[list[Path] | None, typer.Option("--model", help="Instead of the package's; repeatable.")] = None,
    address: Address = None,
) -> None:
    """Compress the package's small BLOOMs with three methods × three samplings: what does each language lose?"""
    with _one_line_errors():
        from mbs_ray.mini.demo import conclusion, run_demo

        console = Console()
        result = run_demo(_absolute(out), address, console, model)
        _show(result, out, console, conclusion(result))


@app.command(epilog="Example: mbs track ./results/bloom-560m   (or one run of it: …/runs/gptq-3bit-equal)")
def track(
    folder: Annotated[Path, typer.Argument(help="Folder of a sweep, or of one of its runs.")],
    tracking_uri: Annotated[
        str | None, typer.Option("--tracking-uri", help="Default: MLFLOW_TRACKING_URI, or the sweep's own database.")
    ] = None,
) -> None:
    """Tell MLflow what a sweep measured while it was away. What it knows already is not doubled."""
    with _one_line_errors():
        from mbs_ray.track_runs import track_runs

        taken = dict(track_runs(folder, tracking_uri))
        for run, whole in taken.items():
            typer.echo(f"{run}: {'up to date' if whole else 'not taken whole; try again'}")
        if not all(taken.values()):
            raise typer.Exit(1)


@app.command(epilog="Example: mbs ui ./results --port 5000")
def ui(
    out: Annotated[Path, typer.Argument(help="The --out folder of earlier commands.")],
    host: Annotated[str, typer.Option("--host", help="Loopback, unless you know who else can reach it.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port")] = 5000,
) -> None:
    """Open MLflow on the results of earlier commands."""
    with _one_line_errors():
        from mbs_ray.tracking import DATABASE, database_uri
        from mbs_ray.ui_links import ui_links

        uri = database_uri(out)
        if not (out / DATABASE).is_file():
            raise InputError(f"{out}: no {DATABASE}; give the --out of an earlier mbs compress or mbs sweep")
        address = f"http://{host}:{port}"
        typer.echo("\n".join([f"MLflow on {address} (stop with Ctrl-C)", *ui_links(uri, address)]))
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        # Looking at results needs none of MLflow's background workers.
        os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
        server = ["mlflow", "server", "--host", host, "--port", str(port), "--workers", "1"]
        os.execv(sys.executable, [sys.executable, "-m", *server, "--backend-store-uri", uri])


def _conduct(spec: Any, out: Path, address: str | None) -> None:
    from mbs_ray.progress import Progress
    from mbs_ray.sweep import conduct

    console = Console()
    _show(conduct(spec, _absolute(out), address, Progress(console)), out, console)


def _show(result: Any, out: Path, console: Console, conclusion: str = "") -> None:
    """Tables, what they show, and where everything is. Exit code 1 where runs failed."""
    from mbs_ray.progress import increase_views

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


def _score_text(
    model: str, corpora: dict[str, dict[str, Any]], sequence_length: int, languages: str, how: dict[str, Any]
) -> None:
    from mbs_ray.evaluate import evaluate_model
    from mbs_ray.specs import EvaluationSpec, validated
    from mbs_ray.tables import score_table

    console = Console()
    sets = {
        set_name: validated(EvaluationSpec, {**content, "sequence_length": sequence_length})
        for set_name, content in corpora.items()
    }
    for set_name, (path, scores) in evaluate_model(model, languages=languages, sets=sets, **how).items():
        console.print(score_table(f"{Path(model).name} on {set_name}", scores))
        console.print(f"scores of every token: {path}", highlight=False, soft_wrap=True)


def _score_tasks(model: str, names: list[str], asked: dict[str, Any], how: dict[str, Any]) -> None:
    from mbs_ray.evaluate_tasks import evaluate_tasks
    from mbs_ray.tables import accuracy_table

    console = Console()
    path, scores = evaluate_tasks(model, tasks=names, **asked, **how)
    console.print(accuracy_table(f"accuracy of {Path(model).name}, {asked['shots']} shots", scores))
    console.print(f"written: {path}", highlight=False, soft_wrap=True)


def _given(**options: Any) -> dict[str, Any]:
    """Those that stand on the command line."""
    return {name: value for name, value in options.items() if value is not None}


def _model(model: str) -> str:
    return str(Path(model).resolve()) if Path(model).is_dir() else model


def _evaluation(folders: list[Path], segments: int | None) -> dict[str, dict[str, Any]]:
    """Evaluation sets named after their folders."""
    sets: dict[str, dict[str, Any]] = {}
    for folder in folders:
        name = folder.resolve().name
        if name in sets:
            raise InputError(f"{folder}: another evaluation folder is named {name} too; rename one")
        sets[name] = {"corpus": str(folder.resolve()), "segments": segments}
    return sets


def _absolute(out: Path) -> Path:
    """``--out`` made absolute; inside a Ray job, whose working directory is a passing copy, it must be so."""
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ and not out.is_absolute():
        raise InputError(f"--out {out}: inside a Ray job give an absolute folder; the job's own is thrown away")
    return out.resolve()


@contextmanager
def _one_line_errors() -> Iterator[None]:
    """One line instead of a traceback: exit code 2 for bad input, 1 where a stage died."""
    try:
        yield
    except (InputError, StageDiedError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2 if isinstance(error, InputError) else 1) from None


if __name__ == "__main__":
    app()
