"""Tables that commands print."""

from collections.abc import Mapping, Sequence

from rich.table import Table

from mbs_ray.evaluation.perplexity import LanguageScore
from mbs_ray.evaluation.zero_shot import TaskScore, language_means, overall_mean
from mbs_ray.languages import LANGUAGES


def allocation_table(title: str, allocation: Mapping[str, int], shares: Mapping[str, float]) -> Table:
    """Segments of each language beside its share of the model's training data, where that is known."""
    table = _table(title, "language", "name", "share of training", "segments", "share of segments")
    segments = sum(allocation.values())
    for code, count in allocation.items():
        name = LANGUAGES[code].name if code in LANGUAGES else ""
        share = f"{100 * shares[code]:.3f} %" if code in shares else ""
        table.add_row(code, name, share, str(count), f"{100 * count / segments:.3f} %")
    table.add_row("all", "", "", str(segments), "")
    return table


def score_table(title: str, scores: Mapping[str, LanguageScore]) -> Table:
    """Perplexity and bits per byte of each language, and what they were counted over."""
    table = _table(title, "language", "perplexity", "bits per byte", "tokens", "bytes", "documents")
    for language, one in scores.items():
        counts = (f"{one.tokens:,}", f"{one.bytes:,}", f"{one.documents:,}")
        table.add_row(language, f"{one.perplexity:.3f}", f"{one.bits_per_byte:.4f}", *counts)
    return table


def accuracy_table(title: str, scores: Sequence[TaskScore]) -> Table:
    """Accuracies in percent, with lm-eval's standard error, of each language in each task that has it."""
    tasks = list(dict.fromkeys(one.task for one in scores))
    cells = {(one.task, one.language): _accuracy(one) for one in scores}
    table = _table(title, "language", *tasks, "mean")
    for language, mean in language_means(scores).items():
        table.add_row(language, *(cells.get((task, language), "") for task in tasks), f"{100 * mean:.2f}")
    table.add_row("all", *[""] * len(tasks), f"{100 * overall_mean(scores):.2f}")
    return table


def _accuracy(score: TaskScore) -> str:
    error = "" if score.stderr is None else f" ± {100 * score.stderr:.2f}"
    return f"{100 * score.accuracy:.2f}{error}"


def _table(title: str, *columns: str) -> Table:
    """Words to the left, numbers to the right."""
    table = Table(title=title)
    for column in columns:
        table.add_column(column, justify="left" if column in ("language", "name") else "right")
    return table
