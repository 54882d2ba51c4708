"""Scores one checkpoint alone, on the stages: ``mbs evaluate``."""

from collections.abc import Mapping
from pathlib import Path

from mbs_ray.cluster.connect import connected
from mbs_ray.cluster.job import Job, job_text
from mbs_ray.cluster.layout import Layout, resolve_layout
from mbs_ray.cluster.numerics import resolve_numerics, room_for_actors
from mbs_ray.cluster.offload import AUTO, Offload
from mbs_ray.cluster.pipeline import Pipeline
from mbs_ray.cluster.sharding import block_costs, head_cost, shard_blocks
from mbs_ray.driver.progress import Progress
from mbs_ray.evaluation.perplexity import LanguageScore, language_scores
from mbs_ray.files import digest
from mbs_ray.languages.distribution import parse_languages
from mbs_ray.methods import Statistic
from mbs_ray.model.decoder import Decoder
from mbs_ray.run.microbatch import auto_microbatch
from mbs_ray.run.prepare import CheckedTexts, evaluation_requests, read_through
from mbs_ray.run.spec import EvaluationSpec
from mbs_ray.text.segment_draw import draw_segments

POLL_SECONDS = 0.5


def evaluate_model(
    model: str,
    *,
    revision: str | None,
    languages: str,
    sets: Mapping[str, EvaluationSpec],
    compute_dtype: str,
    stages: int | None,
    replicas: int | None,
    threads: int | None,
    out: Path,
    address: str | None,
    progress: Progress,
    offload: Offload = AUTO,
) -> dict[str, tuple[Path, dict[str, LanguageScore]]]:
    """Score a checkpoint, block by block over all segments: set → (file of token scores, scores).

    Raises :class:`InputError` before any actor starts where the model or a text cannot be used.
    """
    asked = parse_languages(languages)
    opened = read_through(model, revision, out / "cache", progress.work)
    requests = evaluation_requests(sets, opened, asked, 0)
    checked = CheckedTexts(out / "cache")
    texts = {name: checked.check(request) for name, request in requests.items()}
    with connected(address, (stages or 1) * (replicas or 1) * (threads or 1)):
        files = []
        for name, text in texts.items():
            progress.say(f"drawing evaluation text {name}")
            drawn = draw_segments(text, out / "segments")
            files.append(job_text(name, drawn))
        microbatch = auto_microbatch(max(request.sequence_length for request in requests.values()))
        layout = resolve_layout(
            stages,
            replicas,
            actors=room_for_actors(threads),
            runs=1,
            blocks=opened.decoder.blocks,
            microbatches=max(-(-len(file.languages) // microbatch) for file in files),
        )
        numerics = resolve_numerics(layout.actors, threads)
        tokens = sum(len(file.languages) * texts[file.name].sequence_length for file in files)
        job = Job(
            key=opened.name,
            model=opened.checkpoint.folder,
            compute_dtype=numerics.compute_dtype(compute_dtype, opened.decoder.stored_dtype),
            microbatch=microbatch,
            method=None,
            calibration=None,
            evaluation=tuple(files),
            directory=out / "evaluated" / digest(opened.fingerprint, *(text.fingerprint for text in texts.values())),
            blocks=scoring_shards(opened.decoder, tokens, layout.stages),
            replicas=layout.replicas,
        )
        run_alone(job, layout, numerics.threads, offload, progress)
    return {name: (job.scores_file(name), language_scores(job.scores_file(name))) for name in requests}


def run_alone(job: Job, layout: Layout, threads: int, offload: Offload, progress: Progress) -> None:
    """Take one job through stages of its own. Raises what stopped it."""
    with (
        Pipeline(layout, threads, offload.of([job], layout.stages), progress.say) as pipeline,
        progress.runs({job.key: job}) as show,
    ):
        pipeline.submit(job)
        while pipeline.busy:
            for outcome in pipeline.outcomes(POLL_SECONDS):
                show.ended(outcome.key, outcome.error)
                if outcome.error is not None:
                    raise outcome.error
            show.stages(pipeline.statuses())


def scoring_shards(decoder: Decoder, tokens: int, stages: int) -> tuple[range, ...]:
    """Blocks of each stage where so many tokens are only scored."""
    costs, head = block_costs(decoder, Statistic.NONE, 0, tokens), head_cost(decoder, tokens)
    return tuple(shard_blocks(costs, head, stages))
