"""What the directory and the model card of a run say of it, gathered while the run's own words for it are at hand."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ray

from mbs_ray import __version__
from mbs_ray.cluster.layout import Layout
from mbs_ray.evaluation.metric_names import GEOMEAN, INCREASE, PERPLEXITY, Family, MetricNames
from mbs_ray.evaluation.perplexity import LanguageScore, stored_interval
from mbs_ray.languages.sampling_registry import sampling_spec
from mbs_ray.methods import method_spec
from mbs_ray.run.card import CardFacts, EvaluationScores
from mbs_ray.run.modes import Budget
from mbs_ray.run.prepare import PreparedRun
from mbs_ray.run.run_facts import RunFacts

#: Scores of the dense model and of the run, by language.
Scores = tuple[Mapping[str, LanguageScore], Mapping[str, LanguageScore]]


def run_facts(run: PreparedRun, resolved: Mapping[str, Any], layout: Layout) -> RunFacts:
    """Gather what a run is, for its directory; ``resolved`` holds what ``auto`` and the machine resolved to."""
    spec = run.spec
    return RunFacts(
        label=run.label,
        model=run.model.name,
        method=spec.method.label,
        sampling=spec.sampling.label,
        sampling_name=spec.sampling.name,
        statistics=spec.statistics_label,
        seed=spec.seed,
        languages=run.languages,
        evaluation=tuple(run.evaluation),
        # With dense statistics the field counts nothing that is drawn; for starved experts more are.
        segments=spec.segments if run.weights is None and run.top_up is None else sum(run.allocation.values()),
        sequence_length=spec.sequence_length,
        fingerprints={"model": run.model.fingerprint, "calibration": run.calibration.fingerprint},
        resolved=resolved,
        versions={"mbs_ray": __version__, "ray": ray.__version__},
        layout=vars(layout),
        groups=run.groups,
    )


def card_facts(run: PreparedRun, scores: Mapping[str, Scores], metrics: Mapping[str, float]) -> CardFacts:
    """Gather the facts of a scored run for its card; ``scores`` are by evaluation set, the first one first.

    ``metrics`` are all of its :func:`~mbs_ray.evaluation.perplexity.evaluation_metrics`, for their intervals.
    """
    model, names = run.spec.model, MetricNames.by_set(scores)
    return CardFacts(
        model=run.model.name,
        base_model=None if Path(model).expanduser().is_dir() else model,
        languages=list(run.languages),
        method=method_spec(run.spec.method),
        sampling=sampling_spec(run.spec.sampling),
        allocation=run.allocation,
        weights=run.shares,
        sequence_length=run.spec.sequence_length,
        seed=run.spec.seed,
        calibration=run.calibration.fingerprint,
        evaluation=[
            EvaluationScores(
                name,
                {code: (one.perplexity, compressed[code].perplexity) for code, one in dense.items()},
                {code: (one.bits_per_byte, compressed[code].bits_per_byte) for code, one in dense.items()},
                _intervals(metrics, names[name], PERPLEXITY, dense),
                _intervals(metrics, names[name], INCREASE, [*dense, GEOMEAN, *run.groups]),
            )
            for name, (dense, compressed) in scores.items()
        ],
        version=__version__,
        groups={group: list(own) for group, own in run.groups.items()},
        fit_to=None if run.spec.fit_to is None else f"{run.spec.fit_to.strength}",
        budget=None if run.spec.budget is None or run.dealt is None else _budget(run.spec.budget, run.dealt),
        top_up=None if run.top_up is None else run.top_up["segments"],
    )


def _budget(budget: Budget, dealt: Mapping[str, Any]) -> dict[str, Any]:
    return {"rule": budget.rule, "mean": dealt["mean"], "amounts": dealt["amounts"]}


def _intervals(
    metrics: Mapping[str, float], names: MetricNames, family: Family, rows: Iterable[str]
) -> dict[str, tuple[float, float]]:
    """Find the interval of each row that has one, as plain (low, high) values."""
    known = {row: stored_interval(metrics, names, family, row) for row in rows}
    return {row: (interval.low, interval.high) for row, interval in known.items() if interval is not None}
