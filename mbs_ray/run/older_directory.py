"""Run directories of earlier versions, without ``run.json``: their facts are in the identity that MLflow was given."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mbs_ray.run.card import CardFacts
from mbs_ray.run.run_facts import RunFacts


@dataclass(frozen=True)
class OlderRun:
    """The facts of a run, and set → language → perplexity of the dense model, empty until the run is finished."""

    facts: RunFacts
    dense: dict[str, dict[str, float]]


def older_run(
    label: str, told: Mapping[str, Any], card: CardFacts | None, allocation: Mapping[str, int], weighed: bool
) -> OlderRun:
    """Derive what a newer version writes into ``run.json`` and ``result.json``.

    ``told`` is the content of ``tracking.json``; ``weighed``: the run has dense statistics, so that its parameter
    ``segments`` is not the number of segments drawn.
    """
    params, tags = told["run"]["params"], told["run"]["tags"]
    facts = RunFacts(
        label=label,
        model=tags["model"],
        method=tags["method"],
        sampling=tags["sampling"],
        sampling_name=params["sampling"]["name"],
        statistics=tags.get("statistics", "propagated"),  # the only ones, before there was a choice
        seed=int(tags["seed"]),
        languages=_listed(params["languages"]),
        evaluation=_listed(params["evaluation"]),
        segments=sum(allocation.values()) if weighed else params["segments"],
        sequence_length=params["sequence_length"],
        fingerprints=params["fingerprint"],
        resolved=params["resolved"],
        versions=params["version"],
        layout=told["sweep"]["params"].get("layout", {}),
    )
    scored = [] if card is None else card.evaluation
    return OlderRun(facts, {one.name: {code: dense for code, (dense, _) in one.perplexity.items()} for one in scored})


def _listed(joined: str) -> tuple[str, ...]:
    return tuple(joined.split(",")) if joined else ()
