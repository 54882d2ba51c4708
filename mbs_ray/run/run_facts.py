"""The facts of a run, ``run.json`` in its directory: what it is, settled before anything is measured."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from mbs_ray.languages.codes import GROUPS


@dataclass(frozen=True)
class RunFacts:
    """The facts of a run; plain values, fit for JSON, and no paths.

    ``method``, ``sampling`` and ``statistics`` are labels, ``sampling_name`` is the strategy's name. ``evaluation``
    names the evaluation sets, the first one first. ``segments`` of ``sequence_length`` tokens are the calibration set,
    or with dense statistics those that moments are taken from. ``fingerprints`` has those of the ``model`` and of the
    ``calibration`` set, ``resolved`` the fields of :data:`~mbs_ray.run.sweep_folders.FORWARD_FIELDS`. ``layout`` is
    that of the last command that worked on the run. ``groups`` of the languages have rows of their own in tables; a run
    of an earlier version has none.
    """

    label: str
    model: str
    method: str
    sampling: str
    sampling_name: str
    statistics: str
    seed: int
    languages: tuple[str, ...]
    evaluation: tuple[str, ...]
    segments: int
    sequence_length: int
    fingerprints: Mapping[str, str]
    resolved: Mapping[str, Any]
    versions: Mapping[str, str]
    layout: Mapping[str, int]
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "RunFacts":
        """Rebuild the facts from what :meth:`to_json` made."""
        languages, evaluation = tuple(content["languages"]), tuple(content["evaluation"])
        # JSON keeps them by name.
        known = content.get("groups", {})
        groups = {group: tuple(known[group]) for group in GROUPS if group in known}
        return cls(**{**content, "languages": languages, "evaluation": evaluation, "groups": groups})

    def to_json(self) -> dict[str, Any]:
        """Return the facts as a mapping that JSON can hold."""
        return asdict(self)
