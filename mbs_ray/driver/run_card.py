"""What the model card of a run says, gathered while the run's own words for it are at hand."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from mbs_ray import __version__
from mbs_ray.evaluation.perplexity import LanguageScore, stored_interval
from mbs_ray.languages.sampling_registry import sampling_spec
from mbs_ray.methods import method_spec
from mbs_ray.run.card import CardFacts, EvaluationScores
from mbs_ray.run.prepare import PreparedRun

#: Scores of the dense model and of the run, by language.
Scores = tuple[Mapping[str, LanguageScore], Mapping[str, LanguageScore]]


def card_facts(run: PreparedRun, scores: Mapping[str, Scores], metrics: Mapping[str, float]) -> CardFacts:
    """The facts of a run that was scored; ``scores`` go by evaluation set, the first one first.

    ``metrics`` are all of its :func:`~mbs_ray.evaluation.perplexity.evaluation_metrics`, for their intervals.
    """
    model = run.spec.model
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
                _intervals(metrics, f"ppl{f'_{name}' if position else ''}", dense),
                _intervals(metrics, f"ppl_increase{f'_{name}' if position else ''}", [*dense, "geomean"]),
            )
            for position, (name, (dense, compressed)) in enumerate(scores.items())
        ],
        version=__version__,
    )


def _intervals(metrics: Mapping[str, float], metric: str, rows: Iterable[str]) -> dict[str, tuple[float, float]]:
    """The interval of each row that has one, as plain values."""
    known = {row: stored_interval(metrics, f"{metric}/{row}") for row in rows}
    return {row: (interval.low, interval.high) for row, interval in known.items() if interval is not None}
