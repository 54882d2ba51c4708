"""SweepSpec: a grid of runs and how its actors are arranged, read from a sweep file."""

import itertools
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
from mbs_ray.run.spec import FrozenSpec, RunSpec, check_name


class LayoutSpec(FrozenSpec):
    """How the actors of a sweep are arranged; the number of stages changes no bit, that of replicas does."""

    stages: PositiveInt | Literal["auto"] = Field(
        "auto", description="shards of the blocks; auto: as many as there are GPUs (nodes of CPUs), runs and blocks"
    )
    replicas: PositiveInt | Literal["auto"] = Field(
        "auto", description="actors that share a stage's segments; auto: what GPUs are left, 1 where stages are given"
    )


def _layout(value: Any) -> Any:
    return {} if value == "auto" else value


class SweepSpec(FrozenSpec):
    """A grid of runs. Every other field of a run stands at the top level and holds for all of them."""

    name: str = Field(description="of the sweep: its folder under --out, its MLflow experiment")
    run: dict[str, Any] = Field(description="fields of RunSpec that hold for all runs")
    grid: dict[str, list[Any]] = Field(default_factory=dict, description="fields of RunSpec with several values")
    layout: Annotated[LayoutSpec, BeforeValidator(_layout)] = Field(
        default_factory=lambda: LayoutSpec.model_validate({}), description="stages and replicas, or auto"
    )
    threads: PositiveInt | Literal["auto"] = Field("auto", description="CPU threads of an actor")
    offload: Literal["auto", "none", "host", "nvme"] = Field(
        "auto",
        description="where activations lie: device memory (none), host memory, a disk; auto: the first with room",
    )
    nvme_path: Path | None = Field(None, description="folder on a local disk of every node, for offload: nvme")

    @field_validator("name")
    @classmethod
    def _folder(cls, name: str) -> str:
        check_name("sweep", name)
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
        labels = self.labels(runs)
        for label in labels:
            if labels.count(label) > 1:
                raise InputError(f"grid: two runs would both be named {label}; a value stands there twice")
        return runs

    def labels(self, runs: list[RunSpec]) -> list[str]:
        """A name for each run, of what tells it apart: ``sparsegpt-50-proportional-seed1``."""
        several_models = len(self.grid.get("model", [])) > 1
        models = [Path(run.model).name if several_models else "" for run in runs]
        columns = [self._column(run, set(self.grid)) for run in runs]
        labels = ["-".join(filter(None, (model, *column))) for model, column in zip(models, columns, strict=True)]
        return [re.sub(r"[^A-Za-z0-9._-]", "-", label) for label in labels]

    def columns(self, runs: list[RunSpec]) -> list[tuple[str, str]]:
        """The column of each run in its model's table, over whose runs (the seeds) it is averaged."""
        return [self._column(run, set(self.grid) - {"seed"}) for run in runs]

    def _column(self, run: RunSpec, telling: set[str]) -> tuple[str, str]:
        """The method, and the sampling with whatever else varies in the grid."""
        others = [field for field in self.grid if field in telling - {"method", "sampling", "model"}]
        varying = [_label_part(field, run) for field in others if len(self.grid[field]) > 1]
        return run.method.label, "-".join([run.sampling.label, *varying])


def _label_part(field: str, run: RunSpec) -> str:
    """Format a field's value as part of a run's name."""
    return run.statistics_label if field == "statistics" else f"{field.replace('_', '-')}{getattr(run, field)}"


def load_sweep(path: Path) -> SweepSpec:
    """Read a sweep file. Relative folders in it are relative to the file.

    Raises :class:`InputError` naming the file and the field.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a mapping with name, grid and the fields of a run")
    own = {key: content.pop(key) for key in list(content) if key in SweepSpec.model_fields and key != "run"}
    try:
        sweep = validated(SweepSpec, {**own, "run": _relative_to(path.parent, content)})
        grid = {
            field: [_relative_to(path.parent, {field: value})[field] for value in values]
            for field, values in sweep.grid.items()
        }
        sweep = sweep.model_copy(update={"grid": grid})
        sweep.runs()
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return sweep


def _relative_to(folder: Path, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a run with relative paths resolved; a model that is no folder there stays a hub id."""
    resolved = dict(fields)
    if isinstance(resolved.get("model"), str) and (folder / resolved["model"]).is_dir():
        resolved["model"] = str((folder / resolved["model"]).resolve())
    if isinstance(resolved.get("corpus"), str):
        resolved["corpus"] = str((folder / resolved["corpus"]).resolve())
    if isinstance(resolved.get("distribution"), str):
        resolved["distribution"] = str((folder / resolved["distribution"]).resolve())
    if isinstance(resolved.get("evaluation"), dict):
        resolved["evaluation"] = {
            name: _relative_to(folder, one) if isinstance(one, dict) else one
            for name, one in resolved["evaluation"].items()
        }
    return resolved


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
