"""Tables that commands print."""

from collections.abc import Mapping, Sequence

from rich.table import Table

from mbs_ray.evaluation.comparison import Difference
from mbs_ray.evaluation.intervals import Interval
from mbs_ray.evaluation.perplexity import LanguageScore, perplexity_interval
from mbs_ray.evaluation.similarity import STATISTICS, Similarity
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
    columns = ("language", "perplexity", "95 % interval", "bits per byte", "tokens", "bytes", "documents")
    table = _table(title, *columns)
    for language, one in scores.items():
        counts = (f"{one.tokens:,}", f"{one.bytes:,}", f"{one.documents:,}")
        interval = interval_text(perplexity_interval(language, one))
        table.add_row(language, f"{one.perplexity:.3f}", interval, f"{one.bits_per_byte:.4f}", *counts)
    return table


def similarity_table(title: str, similarity: Similarity, block: int) -> Table:
    """Of each language the nearest and the farthest other one, and its own two halves; by both statistics."""
    columns = (f"{one}:\n{what}" for one in STATISTICS for what in ("nearest", "farthest", "halves"))
    table = _table(title, "language", *columns)
    shown: dict[str, list[str]] = {language: [] for language in similarity.languages}
    for statistic in STATISTICS:
        for language, angles in similarity.degrees(statistic, block).items():
            others = angles.drop(language).sort_values()
            for end in (0, -1):
                shown[str(language)].append(f"{others.index[end]} {_degrees(others.iloc[end])}")
            shown[str(language)].append(_degrees(similarity.degrees_of_halves(statistic, block)[str(language)]))
    for language, cells in shown.items():
        table.add_row(language, *cells)
    return table


def _degrees(angle: float) -> str:
    return f"{angle:.0f}°" if angle >= 9.95 else f"{angle:.1f}°"


def comparison_table(title: str, differences: Mapping[str, Difference]) -> Table:
    """nll of B minus A, perplexity of B over A, and whether that is more than noise."""
    table = Table(title=title)
    table.add_column("language")
    for column in ("nll per token, B − A", "95 % interval", "perplexity, B ÷ A", "95 % interval"):
        table.add_column(column, justify="right")
    table.add_column("")
    for row, one in differences.items():
        if row == "geomean":
            table.add_section()
        nll = (f"{one.nll:+.4f}", interval_text(one.interval, "+.4f"))
        table.add_row(row, *nll, f"{one.ratio:.4f}", interval_text(one.ratio_interval, ".4f"), one.verdict)
    return table


def interval_text(interval: Interval | None, form: str = ".3f") -> str:
    """``1.021 … 1.043``; empty where there is no interval."""
    return "" if interval is None else f"{interval.low:{form}} … {interval.high:{form}}"


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
