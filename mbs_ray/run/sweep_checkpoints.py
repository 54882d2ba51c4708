"""The checkpoints of a sweep: its dense models, and what its finished runs keep; read from its folder."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mbs_ray.errors import InputError
from mbs_ray.files import own_content, read_json
from mbs_ray.model.checkpoint_files import CONFIG
from mbs_ray.run.directory import RUNS, SPEC, RunDirectory
from mbs_ray.run.run_facts import RunFacts


@dataclass(frozen=True)
class SweepCheckpoint:
    """A dense model of a sweep, or the checkpoint of one of its runs.

    ``model`` is a folder or hub id. ``run`` is the run it was found by; ``fingerprint`` that of the dense model, empty
    for a run's checkpoint.
    """

    label: str
    model: str
    revision: str | None
    run: RunDirectory
    fingerprint: str = ""

    def refuse_another(self, fingerprint: str) -> None:
        """Raise :class:`InputError` where a dense model is not the one any more that the runs were made from."""
        if self.fingerprint and fingerprint != self.fingerprint:
            raise InputError(
                f"{self.model}: is not the model any more that {self.run.path} was compressed from; bring that one back"
            )


def is_sweep(folder: Path) -> bool:
    """Return whether a path is the folder of a sweep, ``<out>/<sweep>``, and not that of a model."""
    # Trainers leave their logs beside a model in a folder of the same name.
    return (folder / RUNS).is_dir() and not (folder / CONFIG).is_file()


def sweep_checkpoints(sweep: Path, say: Callable[[str], None]) -> list[SweepCheckpoint]:
    """List each dense model of a sweep, followed by the checkpoints that its finished runs keep, by label.

    Runs without a checkpoint are told of in a line each by ``say``. Raises :class:`InputError` where no run has one.
    """
    by_model: dict[tuple[str, str, str | None], list[SweepCheckpoint]] = {}
    for directory in RunDirectory.all_of(sweep):
        try:
            directory.finished()
            facts = directory.facts()
            assert facts is not None
            dense = _dense(directory, facts)
        except InputError as error:
            say(f"left out: {error}")
            continue
        own = by_model.setdefault((dense.fingerprint, dense.model, dense.revision), [dense])
        own.append(SweepCheckpoint(facts.label, str(directory.checkpoint), None, directory))
    if not by_model:
        raise InputError(f"{sweep}: no run of this sweep has a checkpoint; finish one, with keep: checkpoint")
    return [one for own in by_model.values() for one in own]


def _dense(directory: RunDirectory, facts: RunFacts) -> SweepCheckpoint:
    path = directory.path / SPEC
    spec = read_json(path)
    with own_content(path):
        model, revision = str(spec["model"]), spec.get("revision")
    return SweepCheckpoint(facts.model, model, revision, directory, facts.fingerprints["model"])
