"""``mbs evaluate | similarity``: what is asked of a checkpoint, or of all those of a sweep."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

from mbs_ray.cli.cluster_arguments import with_cluster, without
from mbs_ray.cli.inputs import TEXT_COLUMN, absolute, corpus_given, evaluation_sets, model_given, on_ray
from mbs_ray.cli.options import Chat, ComputeDtype, Languages, Out, Revision, SequenceLength, TextColumn
from mbs_ray.cluster.cluster_options import ClusterOptions
from mbs_ray.errors import InputError

if TYPE_CHECKING:
    from mbs_ray.cluster.stage_pool import StagePool
    from mbs_ray.driver.evaluate_tasks import TaskQuestion

app = typer.Typer()


@app.command(
    epilog="Example: mbs evaluate ./bloom-560m --corpus ./validation --out ./results   "
    "or: mbs evaluate ./qwen-instruct --corpus ./chats --chat packed --out ./results   "
    "or: mbs evaluate ./bloom-560m --tasks xnli,xcopa,xstorycloze --out ./results   "
    "or: mbs evaluate ./results/demo --tasks xnli,xcopa --out ./results"
)
@with_cluster()
def evaluate(
    model: Annotated[
        str,
        typer.Argument(help="Folder of a checkpoint, or a hub id; with --tasks also the folder of a sweep."),
    ],
    *,
    out: Out,
    corpus: Annotated[
        list[Path] | None, typer.Option("--corpus", help="Folder with text to score; may be repeated.")
    ] = None,
    text_column: TextColumn = TEXT_COLUMN,
    chat: Chat = None,
    revision: Revision = None,
    languages: Languages = "paper",
    segments: Annotated[
        int | None, typer.Option("--segments", min=1, help="At most this many per language; default: all text.")
    ] = None,
    sequence_length: SequenceLength = 2048,
    join: Annotated[
        Literal["end_token", "blank_line"], typer.Option("--join", help="What stands between documents of --corpus.")
    ] = "end_token",
    tasks: Annotated[
        str | None, typer.Option("--tasks", help="Tasks of lm-evaluation-harness, or groups of them: xnli,xcopa,pawsx")
    ] = None,
    shots: Annotated[int, typer.Option("--shots", min=0, help="Examples before each question of a task.")] = 0,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="At most this many questions of a task, for a quick look.")
    ] = None,
    include_path: Annotated[
        Path | None, typer.Option("--include-path", help="Folder with task files of your own, for --tasks.")
    ] = None,
    compute_dtype: ComputeDtype = "auto",
    cluster: ClusterOptions,
) -> None:
    """Score a checkpoint, dense or compressed, language by language.

    --corpus: perplexity and bits per byte. --tasks: accuracy; of a sweep, that of its dense models and of every
    finished run, compared with the dense one.
    """
    with on_ray(cluster.address) as begin:
        from mbs_ray.run.spec import EvaluationSpec
        from mbs_ray.run.sweep_checkpoints import is_sweep
        from mbs_ray.run.sweep_spec import validated

        if not corpus and tasks is None:
            raise InputError("nothing to score: give --corpus with text, or --tasks, or both")
        whole = is_sweep(Path(model))
        if whole:
            _refuse_for_sweep(model, tasks is not None, bool(corpus), revision)
        asked = {"sequence_length": sequence_length, "join": join}
        sets = evaluation_sets(corpus or [], segments, text_column, chat).items()
        named = {name: validated(EvaluationSpec, {**content, **asked}) for name, content in sets}
        pool = begin(cluster)
        # Loads much more, while stages do.
        from mbs_ray.cli.terminal_tables import accuracy_table, answer_table, paired_table, score_table
        from mbs_ray.driver.evaluate import TextQuestion
        from mbs_ray.driver.evaluate import evaluate as evaluate_checkpoint
        from mbs_ray.driver.evaluate_tasks import TaskQuestion
        from mbs_ray.driver.progress import Progress

        console = Console()
        question = None
        if tasks is not None:
            names = [name.strip() for name in tasks.split(",") if name.strip()]
            question = TaskQuestion(names, shots, limit, include_path)
        if whole and question is not None:
            _evaluate_sweep(Path(model), question, compute_dtype, cluster, out, pool)
            return
        text = TextQuestion(languages, named) if named else None
        result = evaluate_checkpoint(
            model_given(model),
            revision=revision,
            text=text,
            tasks=question,
            compute_dtype=compute_dtype,
            cluster=cluster,
            out=absolute(out),
            progress=Progress(console),
            pool=pool,
        )
        for set_name, (path, scores) in result.texts.items():
            console.print(score_table(f"{Path(model).name} on {set_name}", scores))
            console.print(f"scores of every token: {path}", highlight=False, soft_wrap=True)
        if result.tasks is not None:
            path, accuracies, paired = result.tasks
            console.print(accuracy_table(f"accuracy of {Path(model).name}, {shots} shots", accuracies))
            if any(one.bits_per_byte is not None for one in accuracies):
                console.print(answer_table("bits per byte of the right answers", accuracies))
            if paired is not None:
                console.print(paired_table("this checkpoint (B) against its dense model (A)", paired))
            console.print(f"written: {path}   (mbs ui {out})", highlight=False, soft_wrap=True)


def _refuse_for_sweep(sweep: str, tasks: bool, text: bool, revision: str | None) -> None:
    """Raise :class:`InputError` for what is asked of one checkpoint and not of a sweep's."""
    if text or not tasks:
        raise InputError(
            f"{sweep}: is the folder of a sweep, whose runs its own evaluation has scored on text; give --tasks alone, "
            "or --corpus with one checkpoint"
        )
    if revision is not None:
        raise InputError(f"--revision {revision}: a sweep names the revisions of its models itself; leave it out")


def _evaluate_sweep(
    sweep: Path, question: "TaskQuestion", compute_dtype: str, cluster: ClusterOptions, out: Path, pool: "StagePool"
) -> None:
    """Score the checkpoints of a sweep on tasks and print what came out."""
    from mbs_ray.cli.terminal_tables import sweep_tasks_table
    from mbs_ray.driver.evaluate_sweep import evaluate_sweep
    from mbs_ray.driver.progress import Progress
    from mbs_ray.run.sweep_folders import EVALUATED

    console, whole, results = Console(), sweep.resolve(), absolute(out)
    found = evaluate_sweep(
        whole,
        tasks=question,
        compute_dtype=compute_dtype,
        cluster=cluster,
        out=results,
        progress=Progress(console),
        pool=pool,
    )
    console.print(sweep_tasks_table(f"{whole.name}: {question.shots} shots, against the dense model", found))
    said = f"written: {results / EVALUATED}   (mbs report {sweep}, mbs ui {out})"
    if results != whole.parent:
        said = f"written: {results / EVALUATED}   (mbs report looks in {whole.parent / EVALUATED})"
    console.print(said, highlight=False, soft_wrap=True)


@app.command(epilog="Example: mbs similarity ./bloom-560m ./corpus --languages en,hi,ur,sw --out ./results")
@with_cluster(without("stages", "replicas", "offload", "nvme_path", "wait"))
def similarity(
    model: Annotated[str, typer.Argument(help="Folder of a checkpoint, or a hub id.")],
    corpus: Annotated[Path, typer.Argument(help="Folder of <language>.parquet|.jsonl|.txt")],
    *,
    out: Out,
    text_column: TextColumn = TEXT_COLUMN,
    chat: Chat = None,
    revision: Revision = None,
    languages: Languages = "paper",
    segments: Annotated[int, typer.Option("--segments", min=2, help="Segments of each language.")] = 16,
    sequence_length: SequenceLength = 2048,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the random draw of text.")] = 0,
    compute_dtype: ComputeDtype = "auto",
    cluster: ClusterOptions,
) -> None:
    """Measure how alike languages are inside a dense model, by the inputs of its blocks and the experts they use."""
    with on_ray(cluster.address):
        from mbs_ray.cli.terminal_tables import similarity_table
        from mbs_ray.driver.progress import Progress
        from mbs_ray.driver.similarity import language_similarity
        from mbs_ray.evaluation.language_angles import ANGLES, EXPERTS

        console = Console()
        result = language_similarity(
            model_given(model),
            corpus_given(corpus, text_column, chat),
            revision=revision,
            languages=languages,
            segments=segments,
            sequence_length=sequence_length,
            seed=seed,
            compute_dtype=compute_dtype,
            cluster=cluster,
            out=absolute(out),
            progress=Progress(console),
        )
        found, name = result.similarity, Path(model).name
        for block in (0, found.blocks - 1):
            console.print(similarity_table(f"{name}, input of block {block}", found, block, ANGLES))
        routed = found.measured.get(EXPERTS, [])
        for block in dict.fromkeys(routed[:1] + routed[-1:]):
            console.print(similarity_table(f"{name}, experts of block {block}", found, block, [EXPERTS]))
        for path in result.files:
            console.print(f"written: {path}", highlight=False, soft_wrap=True)
        if not result.tracked:
            console.print("MLflow has not taken everything yet; the same command tries again")
        console.print(f"tracking: {result.tracking_uri}   (mbs ui {out})", highlight=False, soft_wrap=True)
