"""Scores one checkpoint on the stages, on text and on tasks: ``mbs evaluate``."""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mbs_ray.cluster.arrivals import nodes_awaited
from mbs_ray.cluster.cluster_options import ClusterOptions
from mbs_ray.cluster.connect import check_ray, connected
from mbs_ray.cluster.job import JobText, job_text
from mbs_ray.cluster.resources import settled_device
from mbs_ray.cluster.stage_pool import StagePool
from mbs_ray.driver.checkpoint_scorer import CheckpointScorer, open_scorer
from mbs_ray.driver.evaluate_tasks import TaskQuestion, TaskResult, open_question, score_tasks, shared_requests
from mbs_ray.driver.progress import Progress
from mbs_ray.evaluation.perplexity import LanguageScore, language_scores
from mbs_ray.evaluation.text_warnings import text_warnings
from mbs_ray.files import digest
from mbs_ray.languages.distribution import languages_of
from mbs_ray.run.microbatch import auto_microbatch
from mbs_ray.run.prepare import CheckedTexts, Model, evaluation_requests, open_model
from mbs_ray.run.spec import EvaluationSpec
from mbs_ray.text.corpus import require_languages
from mbs_ray.text.segment_draw import draw_segments
from mbs_ray.text.segment_request import SegmentRequest
from mbs_ray.text.tokenizer_files import load_tokenizer


@dataclass(frozen=True)
class TextQuestion:
    """Text to score: evaluation sets by name, in these languages."""

    languages: str
    sets: Mapping[str, EvaluationSpec]


@dataclass(frozen=True)
class EvaluationResult:
    """``texts``: by evaluation set the file of token scores, and the scores by language; ``tasks``: file and scores."""

    texts: dict[str, tuple[Path, dict[str, LanguageScore]]]
    tasks: TaskResult | None


def evaluate(
    model: str,
    *,
    revision: str | None,
    text: TextQuestion | None,
    tasks: TaskQuestion | None,
    compute_dtype: str,
    cluster: ClusterOptions,
    out: Path,
    progress: Progress,
    pool: StagePool | None = None,
) -> EvaluationResult:
    """Score a checkpoint on text, on tasks, or on both with the same stages: those of ``pool`` where it is given.

    Raises :class:`InputError` before any stage works where the model, a text or a task cannot be used.
    """
    opened_tasks = None if tasks is None else open_question(tasks, out)
    check_ray(cluster.address)
    asked = () if text is None else languages_of(model, text.languages, revision)
    for one in () if text is None else text.sets.values():
        require_languages(one.corpus, asked)
    opened = open_model(model, revision, out / "cache")
    requests = {} if text is None else _checked(text, opened, asked, out)
    # As lm-eval loads it: its own maximum length counts.
    tokenizer = None if tasks is None else load_tokenizer(str(opened.checkpoint.folder))
    read = partial(opened.read_through, progress.work)
    with (
        connected(cluster.address, cluster.cpus, read),
        nodes_awaited(cluster, 1, progress.say),
        nullcontext(pool) if pool else StagePool() as stages,
    ):
        files = _drawn(requests, out, progress)
        longest = max((one.sequence_length for one in requests.values()), default=1)
        together = auto_microbatch(longest, settled_device(cluster.device), opened.decoder)
        shared = [-(-len(file.languages) // together) for file in files.values()]
        if opened_tasks is not None:
            shared.append(shared_requests(cluster))
        scorer = open_scorer(
            model,
            opened,
            compute_dtype=compute_dtype,
            cluster=cluster,
            microbatches=max(shared),
            pool=stages,
            out=out,
            progress=progress,
        )
        texts = _score_texts(scorer, requests, files, together) if files else {}
        return EvaluationResult(texts, None if opened_tasks is None else score_tasks(scorer, opened_tasks, tokenizer))


def _checked(text: TextQuestion, opened: Model, languages: tuple[str, ...], out: Path) -> dict[str, SegmentRequest]:
    requests = evaluation_requests(text.sets, opened, languages, 0)
    checked = CheckedTexts(out / "cache")
    return {name: checked.check(request) for name, request in requests.items()}


def _drawn(requests: Mapping[str, SegmentRequest], out: Path, progress: Progress) -> dict[str, JobText]:
    files, facts = {}, []
    for name, request in requests.items():
        progress.say(f"drawing evaluation text {name}")
        drawn = draw_segments(request, out / "segments")
        files[name] = job_text(name, drawn)
        facts.append(drawn.facts)
    for warning in text_warnings(facts):
        progress.say(warning)
    return files


def _score_texts(
    scorer: CheckpointScorer, requests: Mapping[str, SegmentRequest], files: Mapping[str, JobText], microbatch: int
) -> dict[str, tuple[Path, dict[str, LanguageScore]]]:
    job = scorer.job(
        tuple(files.values()),
        tokens=sum(len(file.languages) * requests[name].sequence_length for name, file in files.items()),
        microbatch=microbatch,
        directory=scorer.folder / digest(scorer.model.fingerprint, *(one.fingerprint for one in requests.values())),
    )
    scorer.driver.work_alone(job)
    return {name: (job.scores_file(name), language_scores(job.scores_file(name))) for name in requests}
