"""Multiple-choice tasks of lm-evaluation-harness by language: opening them, and accuracies over them.

Averages as in Multilingual Brain Surgeon (arXiv 2404.04748): first over the tasks that have a language, then over the
languages.
"""

import difflib
import hashlib
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mbs_ray.errors import InputError
from mbs_ray.evaluation.task_items import TaskItem, bits_per_byte, items_of
from mbs_ray.evaluation.task_languages import TaskName, task_language
from mbs_ray.languages.facts import table_order

# lm-eval's own default, so that examples are those of other people's results.
_FEWSHOT_SEED = 1234
_SCORED = ("multiple_choice", "loglikelihood")
_LONGEST_REASON = 300


@dataclass(frozen=True)
class TaskScore:
    """Accuracy of one task in one language over ``documents``; ``stderr`` is lm-eval's, None where it has none.

    ``bits_per_byte`` are those of the right answers, None where no right one is told.
    """

    task: str
    language: str
    accuracy: float
    stderr: float | None
    documents: int
    bits_per_byte: float | None = None


def require_harness() -> None:
    """Raise :class:`InputError` where lm-evaluation-harness is not installed."""
    try:
        import lm_eval  # noqa: F401
    except ImportError:
        raise InputError(
            "--tasks needs lm-evaluation-harness, which is not installed: pip install 'lm-eval>=0.4.13'"
        ) from None
    logging.getLogger("lm_eval").setLevel(logging.ERROR)


def open_tasks(names: Sequence[str], include_path: Path | None = None) -> dict[str, Any]:
    """Open lm-eval's tasks by their names, those of groups and tags one by one, and load their data.

    ``include_path`` is a folder with task files of one's own. Raises :class:`InputError` naming the task where it is
    unknown, its data cannot be loaded, it is not scored by accuracy from likelihoods, or a language has it twice.
    """
    if not names:
        raise InputError("--tasks: names no task; give one or more, as xnli,xcopa")
    manager = _manager(include_path)
    tasks: dict[str, Any] = {}
    for name in names:
        if name not in manager.all_tasks:
            near = difflib.get_close_matches(name, manager.all_tasks, 3)
            hint = f"did you mean {', '.join(near)}?" if near else "lm-eval ls tasks lists them"
            raise InputError(f"task {name}: lm-evaluation-harness {harness_version()} has none of this name; {hint}")
        tasks |= _load(manager, name)
    seen: dict[TaskName, str] = {}
    for name, task in tasks.items():
        if task.OUTPUT_TYPE not in _SCORED or "acc" not in task.aggregation():
            raise InputError(
                f"task {name}: has no accuracy (acc) from the likelihoods of given answers, "
                f"it is {task.OUTPUT_TYPE} with {', '.join(task.aggregation())}; leave it out"
            )
        key = task_language(name)
        if key in seen:
            raise InputError(f"tasks {seen[key]} and {name} both are {key.task} in {key.language}; leave one out")
        seen[key] = name
    return tasks


def questions_digest(tasks: Mapping[str, Any], shots: int = 0, limit: int | None = None) -> str:
    """Hash all that :func:`run_tasks` would ask a model, and the right answers; raises what it raises.

    A task file of the user's may be another when the same names are given again.
    """
    _set_shots(tasks, shots)
    whole = hashlib.sha256()
    for name, task in tasks.items():
        task.build_all_requests(limit=limit, rank=0, world_size=1)
        for one in task.instances:
            asked = [name, one.args, one.doc, task.doc_to_target(one.doc)]
            whole.update(json.dumps(asked, default=str).encode() + b"\n")
    return whole.hexdigest()[:16]


def run_tasks(
    lm: Any, tasks: Mapping[str, Any], shots: int = 0, limit: int | None = None
) -> tuple[list[TaskScore], list[TaskItem]]:
    """Score tasks of :func:`open_tasks` with an lm-eval model, in table order of the languages; and list their items.

    ``shots`` examples precede each question; ``limit``: at most this many documents of each task. Raises
    :class:`InputError` for a task that takes no examples.
    """
    from lm_eval.evaluator import evaluate

    _set_shots(tasks, shots)
    # Accuracies have a closed form; other metrics of a task, which nobody reads here, would be drawn 100,000 times.
    found = evaluate(lm, {"tasks": dict(tasks)}, limit=limit, bootstrap_iters=100, log_samples=True)
    assert found is not None
    by_task: dict[tuple[str, str], list[TaskScore]] = {}
    asked: dict[tuple[str, str], list[TaskItem]] = {}
    items: list[TaskItem] = []
    for name, opened in tasks.items():
        alone = "acc_mutual_info" not in opened.aggregation()
        own = items_of(name, found["samples"][name], opened.doc_to_choice, alone)
        items += own
        result = found["results"][name]
        stderr = result.get("acc_stderr,none")
        known = isinstance(stderr, float) and math.isfinite(stderr)
        documents = found["n-samples"][name]["effective"]
        task, language, _ = task_language(name)
        part = TaskScore(task, language, float(result["acc,none"]), stderr if known else None, documents)
        by_task.setdefault((task, language), []).append(part)
        asked.setdefault((task, language), []).extend(own)
    scores = [replace(whole_of(parts), bits_per_byte=bits_per_byte(asked[key])) for key, parts in by_task.items()]
    order = table_order(one.language for one in scores)
    return sorted(scores, key=lambda one: (one.task, order.index(one.language))), items


def _set_shots(tasks: Mapping[str, Any], shots: int) -> None:
    """Have every question preceded by so many examples, the same whenever a task is asked."""
    for name, task in tasks.items():
        if shots and task.get_config("num_fewshot") == 0:
            raise InputError(f"task {name}: takes no examples (num_fewshot: 0 in its file); give --shots 0")
        task.set_config(key="num_fewshot", value=shots)
        task.set_fewshot_seed(seed=_FEWSHOT_SEED)


def whole_of(parts: Sequence[TaskScore]) -> TaskScore:
    """Return the score of a task whose parts (subjects, for example) were scored: weighed by their documents.

    The error is that of a mean over strata; None where a part has none.
    """
    documents = sum(one.documents for one in parts)
    accuracy = math.fsum(one.accuracy * one.documents for one in parts) / documents
    errors = [one.stderr for one in parts if one.stderr is not None]
    stderr = None
    if len(errors) == len(parts):
        stderr = (
            math.sqrt(math.fsum((error * one.documents) ** 2 for error, one in zip(errors, parts, strict=True)))
            / documents
        )
    return parts[0] if len(parts) == 1 else TaskScore(parts[0].task, parts[0].language, accuracy, stderr, documents)


def language_means(scores: Sequence[TaskScore]) -> dict[str, float]:
    """Average the accuracy of each language over the tasks that have it, in table order."""
    languages = table_order({one.language for one in scores})
    return {language: _mean([one.accuracy for one in scores if one.language == language]) for language in languages}


def overall_mean(scores: Sequence[TaskScore]) -> float:
    """Average the :func:`language_means` over languages: each counts equally, however many tasks it has."""
    return _mean(list(language_means(scores).values()))


def task_metrics(scores: Sequence[TaskScore]) -> dict[str, float]:
    """Return MLflow names and values: ``acc/xnli/sw``, ``acc_stderr/…``, ``answer_bpb/…``, and ``acc/mean/all``."""
    metrics = {f"acc/{one.task}/{one.language}": one.accuracy for one in scores}
    metrics |= {f"acc_stderr/{one.task}/{one.language}": one.stderr for one in scores if one.stderr is not None}
    metrics |= {
        f"answer_bpb/{one.task}/{one.language}": one.bits_per_byte for one in scores if one.bits_per_byte is not None
    }
    metrics |= {f"acc/mean/{language}": mean for language, mean in language_means(scores).items()}
    return metrics | {"acc/mean/all": overall_mean(scores)}


def harness_version() -> str:
    """Return the version of lm-evaluation-harness that is installed."""
    from importlib.metadata import version

    return version("lm_eval")


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _manager(include_path: Path | None) -> Any:
    from lm_eval.tasks import TaskManager

    if include_path is None:
        return TaskManager()
    if not include_path.is_dir():
        raise InputError(f"--include-path {include_path}: is no folder")
    try:
        return TaskManager(include_path=str(include_path))
    except Exception as error:  # whatever reading a file of the user's raises, also in a !function
        raise InputError(f"--include-path {include_path}: {_reason(error)}") from error


def _load(manager: Any, name: str) -> dict[str, Any]:
    try:
        return manager.load([name])["tasks"]
    except Exception as error:  # hub, datasets and the code of a task each raise their own
        raise InputError(f"task {name}: cannot be loaded: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= _LONGEST_REASON else text[: _LONGEST_REASON - 1] + "…"
