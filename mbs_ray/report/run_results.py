"""What the folder of a sweep says about its runs: read for the report, without Ray, MLflow or the model."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mbs_ray.errors import InputError
from mbs_ray.report.colours import SAMPLING_COLOURS
from mbs_ray.run.directory import RunDirectory
from mbs_ray.run.journal import Entry, Journal

TIMELINE = Path("figures") / "timeline.png"
_LOSSES = ("block/relative_loss", "block/loss")
_LAYER_ERROR = "layer_error/"


@dataclass(frozen=True)
class RunResults:
    """One run as its directory has it; ``metrics`` and ``evaluation`` are None and empty until it is finished.

    ``evaluation`` maps a set to the fingerprint of its text, the first set first; ``dense`` set → language →
    perplexity of the dense model. ``weights`` of the languages, empty but for dense statistics. ``losses`` and
    ``layer_errors`` (by language) go by block. ``resolved`` is what can change bits of a forward; times are in
    milliseconds since 1970 (UTC), None where nothing was measured yet.
    """

    label: str
    model: str
    method: str
    sampling: str
    sampling_name: str
    seed: str
    languages: tuple[str, ...]
    segments: int
    sequence_length: int
    allocation: Mapping[str, int]
    weights: Mapping[str, float]
    fingerprints: Mapping[str, str]
    resolved: Mapping[str, Any]
    versions: Mapping[str, str]
    metrics: Mapping[str, float] | None
    evaluation: Mapping[str, str]
    dense: Mapping[str, Mapping[str, float]]
    losses: Mapping[int, float]
    loss_name: str
    layer_errors: Mapping[str, Mapping[int, float]]
    began: int | None
    ended: int | None

    def tail(self, name: str) -> str:
        """What the metrics of a set have in their prefix: nothing for the first, ``_udhr`` for others."""
        return "" if next(iter(self.evaluation)) == name else f"_{name}"


@dataclass(frozen=True)
class SweepRuns:
    """A sweep: its runs by model, method and sampling, its layout, the picture of its stages where there is one."""

    name: str
    runs: tuple[RunResults, ...]
    layout: Mapping[str, Any]
    timeline: bytes | None


def read_sweep(folder: Path) -> SweepRuns:
    """Everything the report shows. Raises :class:`InputError` where the folder is not that of a sweep."""
    directories = [RunDirectory(path) for path in sorted(folder.resolve().glob("runs/*")) if path.is_dir()]
    told = {directory: facts for directory in directories if (facts := directory.tracking_identity()) is not None}
    if not told:
        raise InputError(f"{folder}: not the folder of a sweep; give <out>/<sweep> of mbs sweep, compress or demo")
    runs = sorted((_run(directory, facts["run"]) for directory, facts in told.items()), key=_order)
    timeline = folder / TIMELINE
    # Every run was told of the same sweep; the layout is that of the last command.
    latest = max(told, key=lambda directory: (directory.path / "tracking.json").stat().st_mtime_ns)
    return SweepRuns(
        folder.resolve().name,
        tuple(runs),
        told[latest]["sweep"]["params"].get("layout", {}),
        timeline.read_bytes() if timeline.is_file() else None,
    )


def _run(directory: RunDirectory, told: Mapping[str, Any]) -> RunResults:
    params, tags = told["params"], told["tags"]
    result, card = directory.result(), directory.card()
    scored = [] if result is None or card is None else card.evaluation
    entries = Journal(directory.journal).entries()
    loss_name = next((name for name in _LOSSES if any(one.key == name for one in entries)), "")
    times = [one.timestamp for one in entries]
    allocation, weights = directory.allocation(), directory.weights()
    return RunResults(
        label=directory.path.name,
        model=tags["model"],
        method=tags["method"],
        sampling=tags["sampling"],
        sampling_name=params["sampling"]["name"],
        seed=tags["seed"],
        languages=tuple(params["languages"].split(",")),
        # With dense statistics the field counts nothing that was drawn.
        segments=sum(allocation.values()) if weights else params["segments"],
        sequence_length=params["sequence_length"],
        allocation=allocation,
        weights=weights,
        fingerprints=params["fingerprint"],
        resolved=params["resolved"],
        versions=params["version"],
        metrics=None if result is None else result["metrics"],
        evaluation={} if result is None else {one.name: result["evaluation"][one.name] for one in scored},
        dense={one.name: {code: dense for code, (dense, _) in one.perplexity.items()} for one in scored},
        losses=_by_block(entries, loss_name),
        loss_name=loss_name.removeprefix("block/").replace("_", " "),
        layer_errors=_layer_errors(entries),
        began=min(times, default=None),
        ended=max(times, default=None),
    )


def _by_block(entries: list[Entry], key: str) -> dict[int, float]:
    return dict(sorted((one.step, one.value) for one in entries if one.key == key))


def _layer_errors(entries: list[Entry]) -> dict[str, dict[int, float]]:
    keys = dict.fromkeys(one.key for one in entries if one.key.startswith(_LAYER_ERROR))
    return {key.removeprefix(_LAYER_ERROR): _by_block(entries, key) for key in keys}


def _order(run: RunResults) -> tuple[str, str, int, str]:
    samplings = [*SAMPLING_COLOURS]
    place = samplings.index(run.sampling_name) if run.sampling_name in samplings else len(samplings)
    return run.model, run.method, place, run.label
