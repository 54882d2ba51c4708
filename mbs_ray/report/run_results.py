"""The results of a sweep's runs, read from its folder for the report, without Ray, MLflow or the model."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from mbs_ray.errors import InputError
from mbs_ray.evaluation.metric_names import MetricNames
from mbs_ray.evaluation.scored_tasks import ScoredTasks, scored_tasks
from mbs_ray.files import digest, read_json_if_there
from mbs_ray.report.colours import SAMPLING_COLOURS
from mbs_ray.run.directory import EXPERTS, SPEC, RunDirectory
from mbs_ray.run.journal import Entry, Journal
from mbs_ray.run.run_facts import RunFacts
from mbs_ray.run.stored_size import StoredSize, stored_size
from mbs_ray.run.sweep_folders import SweepFolders

TIMELINE = "timeline.png"
_LOSSES = ("block/relative_loss", "block/loss")
_LAYER_ERROR = "layer_error/"


@dataclass(frozen=True)
class RunResults:
    """One run as its directory has it; ``metrics`` and ``evaluation`` are None and empty until it is finished.

    ``evaluation`` maps a set to the fingerprint of its text, the first set first; ``dense`` set → language →
    perplexity of the dense model. ``weights`` of the languages, empty but for dense statistics. ``losses`` and
    ``layer_errors`` (by language) go by block. ``amounts``, sparsities or bits as ``amount`` says, are those of linears
    by block, empty where all are alike. ``seedless`` is a digest of all that was asked of the run but its seed, empty
    where that is not known. ``size`` is None where that is not known. Times are in milliseconds since 1970 (UTC), None
    where nothing was measured yet. ``experts`` is the table of a mixture's tokens by expert. ``tasks`` are the scores
    of its checkpoint on tasks, ``dense_tasks`` those of its dense model, the newest last.
    """

    facts: RunFacts
    allocation: Mapping[str, int]
    weights: Mapping[str, float]
    metrics: Mapping[str, float] | None
    evaluation: Mapping[str, str]
    dense: Mapping[str, Mapping[str, float]]
    losses: Mapping[int, float]
    loss_name: str
    layer_errors: Mapping[str, Mapping[int, float]]
    amount: str
    amounts: Mapping[int, Mapping[str, float]]
    began: int | None
    ended: int | None
    seedless: str
    size: StoredSize | None
    experts: pd.DataFrame | None = None
    tasks: Sequence[ScoredTasks] = ()
    dense_tasks: Sequence[ScoredTasks] = ()

    def names(self, evaluation: str) -> MetricNames:
        """Return the names of the metrics of one of its evaluation sets."""
        return MetricNames.by_set(self.evaluation)[evaluation]

    @property
    def short_name(self) -> str:
        """What tells it from the others of its model and method: its label without both."""
        model, method = (re.sub(r"[^A-Za-z0-9._-]", "-", name) for name in (self.facts.model, self.facts.method))
        return self.facts.label.removeprefix(f"{model}-").removeprefix(f"{method}-")


@dataclass(frozen=True)
class SweepRuns:
    """A sweep: its runs by model, method and sampling, its layout, the picture of its stages where there is one."""

    name: str
    runs: tuple[RunResults, ...]
    layout: Mapping[str, Any]
    timeline: bytes | None


def read_sweep(folder: Path) -> SweepRuns:
    """Read everything the report shows. Raises :class:`InputError` where the folder is not that of a sweep."""
    folders = SweepFolders.of(folder.resolve())
    known = {one: facts for one in RunDirectory.all_of(folders.sweep) if (facts := one.facts()) is not None}
    if not known:
        raise InputError(f"{folder}: not the folder of a sweep; give <out>/<sweep> of mbs sweep, compress or demo")
    tasks = scored_tasks(folders.evaluated)
    runs = sorted((_run(directory, facts, tasks) for directory, facts in known.items()), key=_order)
    timeline = folders.figures / TIMELINE
    latest = max(known, key=RunDirectory.facts_written)
    return SweepRuns(
        folders.name,
        tuple(runs),
        known[latest].layout,
        timeline.read_bytes() if timeline.is_file() else None,
    )


def _run(directory: RunDirectory, facts: RunFacts, tasks: Sequence[ScoredTasks]) -> RunResults:
    result, amounts = directory.result(), directory.amounts()
    checkpoint = directory.checkpoint
    own = directory.checkpoint_digest() if tasks and result is not None else None
    entries = Journal(directory.journal).entries()
    loss_name = next((name for name in _LOSSES if any(one.key == name for one in entries)), "")
    times = [one.timestamp for one in entries]
    return RunResults(
        facts=facts,
        allocation=directory.allocation(),
        weights=directory.weights(),
        metrics=None if result is None else result["metrics"],
        evaluation=directory.scored_sets(),
        dense={} if result is None else result["dense"],
        losses=_by_block(entries, loss_name),
        loss_name=loss_name.removeprefix("block/").replace("_", " "),
        layer_errors=_layer_errors(entries),
        amount="" if amounts is None else amounts.field,
        amounts={} if amounts is None else amounts.of_block,
        began=min(times, default=None),
        ended=max(times, default=None),
        seedless=_seedless(directory, facts),
        size=stored_size(directory) if result is not None else None,
        experts=pd.read_parquet(experts) if (experts := directory.path / EXPERTS).is_file() else None,
        tasks=[one for one in tasks if result is not None and one.is_of_checkpoint(checkpoint, own)],
        dense_tasks=[one for one in tasks if one.is_of_model(facts.fingerprints["model"])],
    )


def _seedless(directory: RunDirectory, facts: RunFacts) -> str:
    spec = read_json_if_there(directory.path / SPEC, "remove it: the run then counts as the only one of its kind")
    if spec is None:
        return ""
    # Fields that are not set may not have been there yet when another run of the sweep was begun.
    asked = {field: value for field, value in spec.items() if field != "seed" and value is not None}
    return digest(facts.fingerprints["model"], json.dumps(asked, sort_keys=True))


def _by_block(entries: list[Entry], key: str) -> dict[int, float]:
    return dict(sorted((one.step, one.value) for one in entries if one.key == key))


def _layer_errors(entries: list[Entry]) -> dict[str, dict[int, float]]:
    keys = dict.fromkeys(one.key for one in entries if one.key.startswith(_LAYER_ERROR))
    return {key.removeprefix(_LAYER_ERROR): _by_block(entries, key) for key in keys}


def _order(run: RunResults) -> tuple[str, str, int, str]:
    samplings = [*SAMPLING_COLOURS]
    facts = run.facts
    place = samplings.index(facts.sampling_name) if facts.sampling_name in samplings else len(samplings)
    return facts.model, facts.method, place, facts.label
