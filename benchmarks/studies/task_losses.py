"""``python -m benchmarks.studies.task_losses SWEEP``: what a sweep's runs lose on tasks, in Markdown.

The sweep has been scored by ``mbs evaluate SWEEP --tasks``, with its scores beside it.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from benchmarks.studies.__main__ import markdown
from mbs_ray.evaluation.paired_tasks import ALL, PairedAnswers, holm_over_runs, paired_answers
from mbs_ray.evaluation.scored_tasks import ScoredTasks, dense_counterpart
from mbs_ray.report.run_results import RunResults, read_sweep


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path)
    found = list(compared(parser.parse_args().sweep))
    for name, table in {
        "dense": dense_accuracies(found),
        "runs": by_run(found),
        "bits per byte by language": bits_by_language(found),
    }.items():
        print(f"## {name}\n\n{markdown(table)}", flush=True)


Compared = tuple[RunResults, list[PairedAnswers]]


def compared(sweep: Path) -> Iterator[Compared]:
    """Yield each run with its answers, as B, against those of its dense model; its newest scores count.

    The last row of each is adjusted over the runs of the model.
    """
    by_model: dict[str, list[Compared]] = {}
    for run in read_sweep(sweep).runs:
        if run.tasks and (dense := _dense(run, run.tasks[-1])) is not None:
            own = by_model.setdefault(run.facts.fingerprints["model"], [])
            own.append((run, paired_answers(dense.items(), run.tasks[-1].items())))
    for own in by_model.values():
        yield from zip([run for run, _ in own], holm_over_runs([rows for _, rows in own]), strict=True)


def dense_accuracies(found: Sequence[Compared]) -> pd.DataFrame:
    """By model and task: accuracy of the dense model in percent, by language, and the questions of a language."""
    rows = {}
    for run, own in found:
        for row in own:
            if row.task != ALL:
                rows.setdefault((run.facts.model, row.task), {})[row.language] = f"{100 * row.score_a:.0f}"
                rows[run.facts.model, row.task]["questions in each"] = str(row.items)
    return pd.DataFrame(rows).T


def by_run(found: Sequence[Compared]) -> pd.DataFrame:
    """By run: accuracy over all questions, those that one model alone got right, p, its Holm over runs, what differs.

    Last the change in bits per byte of all right answers, with its interval.
    """
    rows = {}
    for run, own in found:
        last = own[-1]
        differ = [f"{row.task} {row.language} ({row.only_a} lost, {row.only_b} won)" for row in own[:-1] if _tells(row)]
        low, high = last.interval or (float("nan"),) * 2
        rows[run.facts.model, run.facts.method, run.facts.sampling] = {
            "dense, %": f"{100 * last.score_a:.1f}",
            "run, %": f"{100 * last.score_b:.1f}",
            "lost": str(last.only_a),
            "won": str(last.only_b),
            "p": f"{last.p:.2g}",
            "Holm over runs": f"{last.adjusted:.2g}",
            "languages that differ": ", ".join(differ) or "none",
            "bits per byte": f"{last.bits:+.3f} ({low:+.3f} … {high:+.3f})",
        }
    return pd.DataFrame(rows).T


def bits_by_language(found: Sequence[Compared]) -> pd.DataFrame:
    """By run and language: change in bits per byte of the right answers of all tasks; a star where noise can be it."""
    rows = {}
    for run, own in found:
        several = [row for row in own if row.task == ALL and row.language != ALL]
        cells = {row.language: f"{row.bits:+.3f}{'' if _beyond_noise(row) else '*'}" for row in several}
        rows[run.facts.model, run.facts.method, run.facts.sampling] = cells
    return pd.DataFrame(rows).T


def _dense(run: RunResults, one: ScoredTasks) -> ScoredTasks | None:
    return dense_counterpart(run.dense_tasks, one, run.facts.fingerprints["model"])


def _beyond_noise(row: PairedAnswers) -> bool:
    return row.interval is not None and not row.interval.low <= 0 <= row.interval.high


def _tells(row: PairedAnswers) -> bool:
    return row.verdict != "within noise"


if __name__ == "__main__":
    main()
