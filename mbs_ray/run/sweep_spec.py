"""SweepSpec: a grid of runs and how its actors are arranged, read from a sweep file."""

import itertools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BeforeValidator,
    Field,
    PositiveInt,
    ValidationError,
    field_validator,
)

from mbs_ray.errors import InputError
from mbs_ray.files import digest, short_name
from mbs_ray.languages.sampling_registry import sampling_spec
from mbs_ray.methods import method_spec
from mbs_ray.run.modes import FrozenSpec
from mbs_ray.run.plain_yaml import read_yaml
from mbs_ray.run.relative_paths import relative_to
from mbs_ray.run.spec import RunSpec, check_name
from mbs_ray.run.sweep_folders import FOLDERS_OF_OUT

#: Fields that runs begun before they were there do not have: at their default they are no part of a run's name.
_LATER = ("fit_to", "budget", "expert_tokens", "expert_segments")


class LayoutSpec(FrozenSpec):
    """How the actors of a sweep are arranged; the number of stages changes no bit, that of replicas does."""

    stages: PositiveInt | Literal["auto"] = Field(
        "auto",
        description="shards of the blocks; auto: at most as many as GPUs (without any, nodes), runs and blocks",
    )
    replicas: PositiveInt | Literal["auto"] = Field(
        "auto", description="actors that share a stage's segments; auto: what GPUs are left, 1 where stages are given"
    )


def _layout(value: Any) -> Any:
    return {} if value == "auto" else value


class SweepSpec(FrozenSpec):
    """A grid of runs. Every other field of a run stands at the top level and holds for all of them."""

    name: str = Field(description="name of the sweep, of its folder under --out and of its MLflow experiment")
    run: dict[str, Any] = Field(description="fields of RunSpec that hold for all runs")
    grid: dict[str, list[Any]] = Field(default_factory=dict, description="fields of a run with several values")
    layout: Annotated[LayoutSpec, BeforeValidator(_layout)] = Field(
        default_factory=lambda: LayoutSpec.model_validate({}), description="stages and replicas, or auto"
    )
    threads: PositiveInt | Literal["auto"] = Field("auto", description="CPU threads of an actor")
    device: Literal["auto", "cuda", "cpu"] = Field(
        "auto", description="what actors compute on; auto: GPUs where the cluster has any, else CPUs"
    )
    offload: Literal["auto", "none", "host", "nvme"] = Field(
        "auto",
        description="where activations lie: device memory (none), host memory, a disk; auto: the first with room",
    )
    nvme_path: Path | None = Field(None, description="folder on a local disk of every node, for offload: nvme")

    @field_validator("name")
    @classmethod
    def _folder(cls, name: str) -> str:
        check_name("sweep", name)
        if name.lower() in FOLDERS_OF_OUT:
            raise ValueError(f"sweep {name!r}: a folder under --out has that name for other things; take another")
        return name

    def runs(self) -> list[RunSpec]:
        """List the runs of the grid, the last field of the grid varying fastest."""
        fields = list(self.grid)
        for field in fields:
            if field not in RunSpec.model_fields:
                raise InputError(f"grid.{field}: no field of a run; there are {', '.join(RunSpec.model_fields)}")
            if not self.grid[field]:
                raise InputError(f"grid.{field}: no values; give at least one")
        runs = []
        for values in itertools.product(*self.grid.values()):
            runs.append(validated(RunSpec, {**self.run, **dict(zip(fields, values, strict=True))}))
        for run in runs:
            if runs.count(run) > 1:
                label = self.labels(runs)[runs.index(run)]
                raise InputError(f"grid: two runs would both be named {label}; a value stands there twice")
        return runs

    def labels(self, runs: list[RunSpec]) -> list[str]:
        """A name for each run, of what tells it apart: ``sparsegpt-50-proportional-seed1``. No two are alike."""
        several_models = len(self.grid.get("model", [])) > 1
        models = _told_apart([Path(run.model).name for run in runs], [run.model for run in runs])
        columns = self._columns(runs, set(self.grid))
        parts = [(model if several_models else "", *column) for model, column in zip(models, columns, strict=True)]
        labels = [re.sub(r"[^A-Za-z0-9._-]", "-", "-".join(filter(None, one))) for one in parts]
        # Without what runs begun before it was there do not have, or their labels would change.
        identities = [
            run.model_dump(
                mode="json",
                exclude={name for name in _LATER if getattr(run, name) == RunSpec.model_fields[name].default},
            )
            for run in runs
        ]
        return [short_name(label) for label in _told_apart(labels, [_plain(one) for one in identities])]

    def columns(self, runs: list[RunSpec]) -> list[tuple[str, str]]:
        """Return the column of each run in its model's table, over whose runs (the seeds) it is averaged."""
        return self._columns(runs, set(self.grid) - {"seed"})

    def _columns(self, runs: list[RunSpec], telling: set[str]) -> list[tuple[str, str]]:
        """Return the method, and the sampling with whatever else varies in the grid."""
        methods = _told_apart([run.method.label for run in runs], [_plain(method_spec(run.method)) for run in runs])
        samplings = _told_apart(
            [run.sampling.label for run in runs], [_plain(sampling_spec(run.sampling)) for run in runs]
        )
        others = [field for field in self.grid if field in telling - {"method", "sampling", "model"}]
        varying = [
            _told_apart(
                [_label_part(field, run) for run in runs],
                [_plain(run.model_dump(mode="json", include={field})) for run in runs],
            )
            for field in others
            if len(self.grid[field]) > 1
        ]
        return [
            (method, "-".join([sampling, *(part[at] for part in varying)]))
            for at, (method, sampling) in enumerate(zip(methods, samplings, strict=True))
        ]


def _label_part(field: str, run: RunSpec) -> str:
    """Format a field's value as part of a run's name."""
    if field == "statistics":
        return run.statistics_label
    if field == "fit_to":
        return f"fit-{run.fit_label}"
    if field == "budget":
        return f"budget-{run.budget_label}"
    if field == "evaluation":
        return field
    return f"{field.replace('_', '-')}{getattr(run, field)}"


def _told_apart(labels: list[str], identities: list[str]) -> list[str]:
    """Return the labels; one that stands for several things has a digest of each behind it."""
    meant: dict[str, set[str]] = {}
    for label, identity in zip(labels, identities, strict=True):
        meant.setdefault(label, set()).add(identity)
    return [
        label if len(meant[label]) == 1 else f"{label}-{digest(identity)[:8]}"
        for label, identity in zip(labels, identities, strict=True)
    ]


def _plain(content: Mapping[str, Any]) -> str:
    return json.dumps(content, sort_keys=True)


def load_sweep(path: Path) -> SweepSpec:
    """Read a sweep file. Relative folders in it are relative to the file.

    Raises :class:`InputError` naming the file and the field.
    """
    try:
        content = read_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a mapping with name, grid and the fields of a run")
    own = {key: content.pop(key) for key in list(content) if key in SweepSpec.model_fields and key != "run"}
    try:
        own, content = relative_to(path.parent, own), relative_to(path.parent, content)
        sweep = validated(SweepSpec, {**own, "run": content})
        grid = {
            field: [relative_to(path.parent, {field: value})[field] for value in values]
            for field, values in sweep.grid.items()
        }
        sweep = sweep.model_copy(update={"grid": grid})
        sweep.runs()
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return sweep


def validated(model: type[Any], content: Mapping[str, Any]) -> Any:
    """Validate plain values as a spec. Raises :class:`InputError` naming the field."""
    try:
        return model.model_validate(dict(content))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            known = sorted({*model.model_fields, *SweepSpec.model_fields} - {"run"})
            raise InputError(f"{where}: no such field; there are {', '.join(known)}") from error
        message = first["msg"].removeprefix("Value error, ")
        raise InputError(f"{where}: {message}") from error
