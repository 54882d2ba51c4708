"""Multiple-choice tasks of lm-evaluation-harness by language: opening them, and accuracies over them.

Averages as in Multilingual Brain Surgeon (arXiv 2404.04748): first over the tasks that have a language, then over the
languages.
"""

import difflib
import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mbs_ray.errors import InputError
from mbs_ray.languages.codes import shortest_code
from mbs_ray.languages.facts import LANGUAGES, table_order

#: Of a task whose name tells no language: ISO 639's code for that.
UNDETERMINED = "und"
# lm-eval's own default, so that examples are those of other people's results.
_FEWSHOT_SEED = 1234
_SCORED = ("multiple_choice", "loglikelihood")
_LONGEST_REASON = 300


@dataclass(frozen=True)
class TaskScore:
    """Accuracy of one task in one language over ``documents``; ``stderr`` is lm-eval's, None where it has none."""

    task: str
    language: str
    accuracy: float
    stderr: float | None
    documents: int


def task_language(name: str) -> tuple[str, str]:
    """(task, language) of a task's name in lm-eval: ``xnli_zh`` → (``xnli``, ``zh-Hans``).

    A language that is not in our table has the code of BCP 47 (``xcopa_qu``, ``belebele_deu_Latn`` → ``de``); a name
    without one is of language ``und``. Three letters, with or without a script (``belebele_eng_Latn``), are a language
    where the table, or the script, says so.
    """
    found = re.fullmatch(r"(?P<task>.+?)_(?P<code>[a-z]{2,3})(_(?P<script>[A-Z][a-z]{3}))?", name)
    if found is None:
        return name, UNDETERMINED
    code, script = found["code"], found["script"]
    language = _known(code, script)
    if language is None and (script or len(code) == 2):
        language = shortest_code(f"{code}-{script}" if script else code)
    return (name, UNDETERMINED) if language is None else (found["task"], language)


# xwinograd_jp is Japanese; zh without a script is the simplified one in the tasks that have it; FLORES' names.
_OTHER_CODES = {"zh": "zh-Hans", "jp": "ja", "zho": "zh-Hans", "swa": "sw"}


def _known(code: str, script: str | None) -> str | None:
    if script is None:
        by_code = {one.iso639_3: one.code for one in reversed(list(LANGUAGES.values()))}
        return code if code in LANGUAGES else _OTHER_CODES.get(code, by_code.get(code))
    for one in LANGUAGES.values():
        if one.script == script and (one.iso639_3 == code or (code == "zho" and one.iso639_3 == "cmn")):
            return one.code
    return None


def require_harness() -> None:
    """Raise :class:`InputError` where lm-evaluation-harness is not installed."""
    try:
        import lm_eval  # noqa: F401
    except ImportError:
        raise InputError(
            "--tasks needs lm-evaluation-harness, which is not installed: pip install 'mbs_ray[zero-shot]'"
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
    seen: dict[tuple[str, str], str] = {}
    for name, task in tasks.items():
        if task.OUTPUT_TYPE not in _SCORED or "acc" not in task.aggregation():
            raise InputError(
                f"task {name}: has no accuracy (acc) from the likelihoods of given answers, "
                f"it is {task.OUTPUT_TYPE} with {', '.join(task.aggregation())}; leave it out"
            )
        key = task_language(name)
        if key in seen:
            raise InputError(f"tasks {seen[key]} and {name} both are {key[0]} in {key[1]}; leave one out")
        seen[key] = name
    return tasks


def run_tasks(lm: Any, tasks: Mapping[str, Any], shots: int = 0, limit: int | None = None) -> list[TaskScore]:
    """Score tasks of :func:`open_tasks` with an lm-eval model, in table order of the languages.

    ``shots`` examples precede each question; ``limit``: at most this many documents of each task. Raises
    :class:`InputError` for a task that takes no examples.
    """
    from lm_eval.evaluator import evaluate

    for name, task in tasks.items():
        if shots and task.get_config("num_fewshot") == 0:
            raise InputError(f"task {name}: takes no examples (num_fewshot: 0 in its file); give --shots 0")
        task.set_config(key="num_fewshot", value=shots)
        task.set_fewshot_seed(seed=_FEWSHOT_SEED)
    # Accuracies have a closed form; other metrics of a task, which nobody reads here, would be drawn 100,000 times.
    found = evaluate(lm, {"tasks": dict(tasks)}, limit=limit, bootstrap_iters=100, log_samples=False)
    assert found is not None
    scores = []
    for name in tasks:
        result = found["results"][name]
        stderr = result.get("acc_stderr,none")
        known = isinstance(stderr, float) and math.isfinite(stderr)
        documents = found["n-samples"][name]["effective"]
        task, language = task_language(name)
        scores.append(TaskScore(task, language, float(result["acc,none"]), stderr if known else None, documents))
    order = table_order(one.language for one in scores)
    return sorted(scores, key=lambda one: (one.task, order.index(one.language)))


def language_means(scores: Sequence[TaskScore]) -> dict[str, float]:
    """Average the accuracy of each language over the tasks that have it, in table order."""
    languages = table_order({one.language for one in scores})
    return {language: _mean([one.accuracy for one in scores if one.language == language]) for language in languages}


def overall_mean(scores: Sequence[TaskScore]) -> float:
    """Average the :func:`language_means` over languages: each counts equally, however many tasks it has."""
    return _mean(list(language_means(scores).values()))


def task_metrics(scores: Sequence[TaskScore]) -> dict[str, float]:
    """Return MLflow names and values: ``acc/xnli/sw``, ``acc_stderr/xnli/sw``, ``acc/mean/sw``, ``acc/mean/all``."""
    metrics = {f"acc/{one.task}/{one.language}": one.accuracy for one in scores}
    metrics |= {f"acc_stderr/{one.task}/{one.language}": one.stderr for one in scores if one.stderr is not None}
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
