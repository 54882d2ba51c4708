"""RunSpec and SweepSpec: what a job is told, validated before anything starts."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    PlainSerializer,
    PositiveInt,
    SkipValidation,
    ValidationInfo,
    field_validator,
)

from mbs_ray.languages.codes import check_code
from mbs_ray.languages.sampling_registry import SAMPLINGS, build_sampling, sampling_spec
from mbs_ray.languages.samplings import Sampling
from mbs_ray.methods import METHODS, Method, build_method, method_spec
from mbs_ray.run.modes import (
    PROPAGATED,
    UNIFORM,
    Budget,
    BudgetField,
    DenseFit,
    FitField,
    FrozenSpec,
    StatisticsField,
)
from mbs_ray.text.tokenization import Join

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")

#: An evaluation set stands in the names of its metrics: ppl_udhr/sw beside ppl_increase/sw and ppl_ci95_low/sw.
BEGINNINGS_OF_METRICS = ("increase", "ci95")


def _method(value: Any) -> Any:
    return value if isinstance(value, tuple(METHODS.values())) else build_method(value)


def _sampling(value: Any) -> Any:
    return value if isinstance(value, tuple(SAMPLINGS.values())) else build_sampling(value)


def _languages(value: Any) -> Any:
    """Check codes here as well, where what YAML made of them is still known."""
    if isinstance(value, list):
        return [check_code(code) for code in value]
    return value if isinstance(value, str) else [check_code(value)]


MethodField = Annotated[
    SkipValidation[Method], BeforeValidator(_method), PlainSerializer(method_spec, return_type=dict)
]
SamplingField = Annotated[
    SkipValidation[Sampling], BeforeValidator(_sampling), PlainSerializer(sampling_spec, return_type=dict)
]
CorpusField = str | dict[str, Any]

#: Segments with which a strength can be chosen by those held out.
LEAST_TO_CHOOSE = 16


class EvaluationSpec(FrozenSpec):
    """One evaluation set: text of the run's languages, scored token by token."""

    corpus: CorpusField = Field(description="folder or data set, as for calibration")
    segments: PositiveInt | None = Field(
        64,
        description="at most this many full segments per language, drawn over the whole text; null: all text",
    )
    sequence_length: Annotated[int, Field(ge=2)] | None = Field(
        None, description="tokens in a segment; null: as in calibration"
    )
    join: Join = Field(
        "end_token", description="what stands between documents: the model's end token, or a blank line (the paper's)"
    )
    parallel: bool | None = Field(
        None,
        description="whether documents are translations, in one order in every language: for the interval of the mean; "
        "null: where they have the same numbers",
    )


class RunSpec(FrozenSpec):
    """One (model, method, sampling, …); all that can change its numbers."""

    model: str = Field(description="folder of a checkpoint in safetensors, or a hub id")
    revision: str | None = Field(None, description="revision of the hub repository")
    distribution: Path | None = Field(
        None, description="file language_distribution.json of the model; default: beside the checkpoint, or built in"
    )
    languages: Annotated[str | list[str], BeforeValidator(_languages)] = Field(
        "paper", description="'paper' (its 20), 'all', or codes"
    )
    corpus: CorpusField = Field(
        description="calibration text: folder of <language>.parquet|.jsonl|.txt; in a sweep file also a data set"
    )
    method: MethodField = Field(description=f"one of {', '.join(METHODS)}, with its fields")
    sampling: SamplingField = Field(description=f"one of {', '.join(SAMPLINGS)}, with its fields")
    segments: PositiveInt = Field(256, description="segments of calibration in all")
    sequence_length: Annotated[int, Field(ge=2)] = Field(2048, description="tokens in a segment")
    seed: Annotated[int, Field(ge=0)] = Field(0, description="seed of the random draw of text")
    allow_repeat: bool = Field(False, description="draw overlapping windows where text is short")
    evaluation: dict[str, EvaluationSpec] = Field(default_factory=dict, description="evaluation sets by name")
    compute_dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="data type of the forward; auto: the checkpoint's on CUDA, float32 on CPU"
    )
    microbatch: PositiveInt | Literal["auto"] = Field(
        "auto",
        description="segments in one forward; auto: about 4,096 tokens on GPUs, 512 or 1,024 and more on CPUs",
    )
    statistics: StatisticsField = Field(
        None,
        description="what inputs second moments are of: propagated: those after compressed blocks; dense: the dense "
        "model's",
    )
    fit_to: FitField = Field(
        None,
        description="what linears are fitted to: propagated: their own outputs, on inputs after compressed blocks; "
        "dense: outputs and residual stream of the dense model, for one more forward and about twice the moments",
    )
    budget: BudgetField = Field(
        None,
        description="how the method's sparsity or bits are distributed: uniform: the same in every linear; increase: "
        "the same on average, more compression where languages lose less; ramp: more from block to block",
    )
    expert_tokens: Annotated[float, Field(ge=0, le=1_000_000)] = Field(
        4.0,
        description="in a mixture of experts: an expert that gets fewer tokens for each column of its linear borrows "
        "from all tokens of the block; 0: only an expert without any token does",
    )
    expert_segments: Annotated[int, Field(ge=0)] = Field(
        0,
        description="in a mixture of experts: at most this many further segments of calibration, of the languages that "
        "bring most to experts below expert_tokens; one forward of the dense model to find them",
    )
    true_sequential: bool = Field(
        False,
        description="calibrate each linear after those before it in its block are compressed; a forward for each input "
        "of a block",
    )
    per_language: bool = Field(
        False, description="measure what every linear loses in each calibration language; one more forward per block"
    )
    keep: Literal["checkpoint", "metrics"] = Field(
        "checkpoint", description="what remains of a finished run: its checkpoint, or its metrics and figures alone"
    )

    @property
    def statistics_label(self) -> str:
        return PROPAGATED if self.statistics is None else self.statistics.label

    @property
    def fit_label(self) -> str:
        return PROPAGATED if self.fit_to is None else self.fit_to.label

    @property
    def budget_label(self) -> str:
        return UNIFORM if self.budget is None else self.budget.label

    @field_validator("fit_to")
    @classmethod
    def _drifting(cls, value: DenseFit | None, info: ValidationInfo) -> DenseFit | None:
        if value is not None and info.data.get("statistics") is not None:
            raise ValueError("dense statistics see no inputs after compressed blocks; take propagated ones")
        if value is not None and value.strength == "auto" and info.data.get("segments", 0) < LEAST_TO_CHOOSE:
            raise ValueError(
                f"strength: auto holds every eighth segment out and needs {LEAST_TO_CHOOSE}; give a strength, as 0.5"
            )
        return value

    @field_validator("budget")
    @classmethod
    def _of_method(cls, value: Budget | None, info: ValidationInfo) -> Budget | None:
        if value is not None and "method" in info.data:
            value.check(info.data["method"])
        if value is not None and value.tries and (dense := info.data.get("statistics")) and dense.stored == "samplings":
            raise ValueError(f"rule {value.rule} tries moments of single languages; give statistics stored: languages")
        return value

    @field_validator("per_language")
    @classmethod
    def _of_dense_weights(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("fit_to") is not None:
            raise ValueError("would count what fit_to changes on purpose as lost; leave one of them out")
        return value

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
            check_name("evaluation set", name)
            if name.startswith(BEGINNINGS_OF_METRICS):
                raise ValueError(f"evaluation set {name!r}: metrics are named like that; take another name")
        return sets


def check_name(what: str, name: str) -> None:
    """Raise ValueError where ``name`` cannot name a folder or a metric; ``what`` says whose name it is."""
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{what} {name!r}: a name has letters, digits, '.', '_' and '-', and begins with none of these"
        )
