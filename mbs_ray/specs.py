"""RunSpec and SweepSpec: what a job is told, validated before anything starts."""

import itertools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PositiveInt,
    SkipValidation,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from mbs_ray.calibration.sampling import Sampling, build_sampling, sampling_spec
from mbs_ray.calibration.tokenization import Join
from mbs_ray.errors import InputError
from mbs_ray.methods import Method, build_method, method_spec

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
# An evaluation set stands in the names of its metrics: ppl_udhr/sw beside ppl_increase/sw and ppl_ci95_low/sw.
_BEGINNINGS_OF_METRICS = ("increase", "ci95")


def _method(value: Any) -> Any:
    return build_method(value) if isinstance(value, str | Mapping) else value


def _sampling(value: Any) -> Any:
    return build_sampling(value) if isinstance(value, str | Mapping) else value


MethodField = Annotated[
    SkipValidation[Method], BeforeValidator(_method), PlainSerializer(method_spec, return_type=dict)
]
SamplingField = Annotated[
    SkipValidation[Sampling], BeforeValidator(_sampling), PlainSerializer(sampling_spec, return_type=dict)
]
CorpusField = str | dict[str, Any]
#: Statistics that are not dense: each block's inputs as the blocks before it, compressed, make them.
PROPAGATED = "propagated"


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


class EvaluationSpec(_Spec):
    """One evaluation set: text of the run's languages, scored token by token."""

    corpus: CorpusField = Field(description="folder or data set, as for calibration")
    segments: PositiveInt | None = Field(
        64,
        description="at most so many full segments per language, drawn over the whole text; null: all text",
    )
    sequence_length: Annotated[int, Field(ge=2)] | None = Field(
        None, description="tokens in a segment; null: as in calibration"
    )
    join: Join = Field(
        "end_token", description="what stands between documents: the model's end token, or a blank line (the paper's)"
    )


class DenseStatistics(_Spec):
    """Second moments from one forward of the dense model, language by language; a sampling weighs them."""

    mode: Literal["dense"] = "dense"
    segments_per_language: PositiveInt = Field(16, description="segments of each language that moments are taken from")
    weights: Literal["shares", "allocation"] = Field(
        "shares", description="of the languages: the sampling's true shares, or the segments it would have drawn"
    )
    stored: Literal["auto", "languages", "samplings"] = Field(
        "auto",
        description="moments on disk: one per language, or one per distinct sampling; same bits; auto: the fewer",
    )

    @property
    def label(self) -> str:
        size = "" if self.segments_per_language == 16 else f"-{self.segments_per_language}"
        return f"{self.mode}{size}{'' if self.weights == 'shares' else f'-{self.weights}'}"


def _statistics(value: Any) -> Any:
    mode = value.get("mode", "dense") if isinstance(value, Mapping) else value
    if isinstance(mode, str) and mode not in (PROPAGATED, "dense"):
        raise ValueError(f"unknown statistics {mode!r}; there are {PROPAGATED} and dense")
    if mode != PROPAGATED:
        return {} if value == "dense" else value
    if isinstance(value, Mapping) and len(value) > 1:
        raise ValueError(f"{PROPAGATED} statistics have no field {next(key for key in value if key != 'mode')!r}")
    return None


StatisticsField = Annotated[
    DenseStatistics | None,
    BeforeValidator(_statistics),
    PlainSerializer(lambda value: PROPAGATED if value is None else value.model_dump()),
]


class RunSpec(_Spec):
    """One (model, method, sampling, …); all that can change its numbers."""

    model: str = Field(description="folder of a checkpoint in safetensors, or a hub id")
    revision: str | None = Field(None, description="revision of the hub repository")
    distribution: Path | None = Field(
        None, description="language_distribution.json of the model; null: beside the checkpoint, or built in"
    )
    languages: str | list[str] = Field("paper", description="'paper', 'all', or codes")
    corpus: CorpusField = Field(description="where the calibration text is read from")
    method: MethodField
    sampling: SamplingField
    segments: PositiveInt = Field(256, description="segments of calibration in all")
    sequence_length: Annotated[int, Field(ge=2)] = Field(2048, description="tokens in a segment")
    seed: Annotated[int, Field(ge=0)] = Field(0, description="of the drawing of text")
    allow_repeat: bool = Field(False, description="draw overlapping windows where text is short")
    evaluation: dict[str, EvaluationSpec] = Field(default_factory=dict, description="sets by name")
    compute_dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="of the forward; auto: the checkpoint's on CUDA, float32 on CPU"
    )
    microbatch: PositiveInt | Literal["auto"] = Field("auto", description="segments in one forward")
    statistics: StatisticsField = Field(
        None, description="propagated (null): from the blocks before, compressed; dense: from the uncompressed model"
    )
    true_sequential: bool = Field(
        False, description="linears of a block see those before them compressed; a forward for each input of a block"
    )
    per_language: bool = Field(
        False, description="measure what every linear loses in each calibration language; one more forward per block"
    )
    keep: Literal["checkpoint", "metrics"] = Field(
        "checkpoint", description="metrics: when a run is finished its weights are removed, its figures stay"
    )

    @property
    def statistics_label(self) -> str:
        return PROPAGATED if self.statistics is None else self.statistics.label

    @field_validator("true_sequential")
    @classmethod
    def _in_sequence(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("statistics") is not None:
            raise ValueError("dense statistics see no linear compressed; take propagated ones, or leave this out")
        return value

    @field_validator("evaluation")
    @classmethod
    def _named(cls, sets: dict[str, EvaluationSpec]) -> dict[str, EvaluationSpec]:
        for name in sets:
            _check_name("evaluation set", name)
            if name.startswith(_BEGINNINGS_OF_METRICS):
                raise ValueError(f"evaluation set {name!r}: metrics are named like that; take another name")
        return sets


class LayoutSpec(_Spec):
    """How the actors of a sweep are arranged; the number of stages changes no bit, that of replicas does."""

    stages: PositiveInt | Literal["auto"] = Field(
        "auto", description="shards of the blocks; auto: as many as there are GPUs (nodes of CPUs), runs and blocks"
    )
    replicas: PositiveInt | Literal["auto"] = Field(
        "auto", description="actors that share a stage's segments; auto: what GPUs are left, 1 where stages are given"
    )


def _layout(value: Any) -> Any:
    return {} if value == "auto" else value


class SweepSpec(_Spec):
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
        _check_name("sweep", name)
        return name

    def runs(self) -> list[RunSpec]:
        """The runs of the grid, the last field of the grid varying fastest."""
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
        varying = [_told(field, run) for field in others if len(self.grid[field]) > 1]
        return run.method.label, "-".join([run.sampling.label, *varying])


def _told(field: str, run: RunSpec) -> str:
    """A field's value as part of a run's name."""
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


def _check_name(what: str, name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{what} {name!r}: a name has letters, digits, '.', '_' and '-', and begins with none of these"
        )


def validated(model: type[Any], content: Mapping[str, Any]) -> Any:
    """A spec from plain values. Raises :class:`InputError` naming the field."""
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
