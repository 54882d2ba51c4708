"""``mbs evaluate | similarity``: what is asked of a checkpoint."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from mbs_ray.cli.inputs import TEXT_COLUMN, absolute, corpus_given, evaluation_sets, model_given, one_line_errors
from mbs_ray.cli.options import (
    Address,
    ComputeDtype,
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
from mbs_ray.errors import InputError

app = typer.Typer()


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
    text_column: TextColumn = TEXT_COLUMN,
    revision: Revision = None,
    languages: Languages = "paper",
    segments: Annotated[
        int | None, typer.Option("--segments", min=1, help="At most so many per language; default: all text.")
    ] = None,
    sequence_length: SequenceLength = 2048,
    join: Annotated[
        Literal["end_token", "blank_line"], typer.Option("--join", help="What stands between documents of --corpus.")
    ] = "end_token",
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
    with one_line_errors():
        from mbs_ray.cluster.offload import Offload
        from mbs_ray.driver.progress import Progress

        if not corpus and tasks is None:
            raise InputError("nothing to score: give --corpus with text, or --tasks, or both")
        console = Console()
        how: dict[str, Any] = {
            "revision": revision,
            "compute_dtype": compute_dtype,
            "stages": stages,
            "replicas": replicas,
            "threads": threads,
            "out": absolute(out),
            "address": address,
            "progress": Progress(console),
            "offload": Offload(offload, nvme_path and nvme_path.absolute()),
        }
        if corpus:
            asked = {"sequence_length": sequence_length, "join": join}
            _score_text(model_given(model), evaluation_sets(corpus, segments, text_column), asked, languages, how)
        if tasks is not None:
            names = [name.strip() for name in tasks.split(",") if name.strip()]
            _score_tasks(model_given(model), names, {"shots": shots, "limit": limit, "include_path": include_path}, how)


@app.command(epilog="Example: mbs similarity ./bloom-560m ./corpus --languages en,hi,ur,sw --out ./results")
def similarity(
    model: Annotated[str, typer.Argument(help="Folder of a checkpoint, or a hub id.")],
    corpus: Annotated[Path, typer.Argument(help="Folder of <language>.parquet|.jsonl|.txt")],
    out: Out,
    text_column: TextColumn = TEXT_COLUMN,
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
    with one_line_errors():
        from mbs_ray.cli.terminal_tables import similarity_table
        from mbs_ray.driver.progress import Progress
        from mbs_ray.driver.similarity import language_similarity

        console = Console()
        result = language_similarity(
            model_given(model),
            corpus_given(corpus, text_column),
            revision=revision,
            languages=languages,
            segments=segments,
            sequence_length=sequence_length,
            seed=seed,
            compute_dtype=compute_dtype,
            threads=threads,
            out=absolute(out),
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


def _score_text(
    model: str, corpora: dict[str, dict[str, Any]], asked: dict[str, Any], languages: str, how: dict[str, Any]
) -> None:
    from mbs_ray.cli.terminal_tables import score_table
    from mbs_ray.driver.evaluate import evaluate_model
    from mbs_ray.run.spec import EvaluationSpec
    from mbs_ray.run.sweep_spec import validated

    console = Console()
    sets = {set_name: validated(EvaluationSpec, {**content, **asked}) for set_name, content in corpora.items()}
    for set_name, (path, scores) in evaluate_model(model, languages=languages, sets=sets, **how).items():
        console.print(score_table(f"{Path(model).name} on {set_name}", scores))
        console.print(f"scores of every token: {path}", highlight=False, soft_wrap=True)


def _score_tasks(model: str, names: list[str], asked: dict[str, Any], how: dict[str, Any]) -> None:
    from mbs_ray.cli.terminal_tables import accuracy_table
    from mbs_ray.driver.evaluate_tasks import evaluate_tasks

    console = Console()
    path, scores = evaluate_tasks(model, tasks=names, **asked, **how)
    console.print(accuracy_table(f"accuracy of {Path(model).name}, {asked['shots']} shots", scores))
    console.print(f"written: {path}", highlight=False, soft_wrap=True)
