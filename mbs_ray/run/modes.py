"""Fields of a run that are one word, or a mapping that says more: statistics, fit_to, budget."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, PositiveInt, model_validator

from mbs_ray.methods import Method, amount_field

#: Statistics that are not dense: each block's inputs as the blocks before it, compressed, make them.
PROPAGATED = "propagated"
#: A budget that deals nothing out: every linear is compressed alike.
UNIFORM = "uniform"


class FrozenSpec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


class DenseStatistics(FrozenSpec):
    """Second moments from one forward of the dense model, language by language; a sampling weighs them."""

    mode: Literal["dense"] = "dense"
    segments_per_language: PositiveInt = Field(16, description="segments of each language that moments are taken from")
    weights: Literal["shares", "allocation"] = Field(
        "shares", description="weight of a language: the sampling's true share, or the segments it would have drawn"
    )
    stored: Literal["auto", "languages", "samplings"] = Field(
        "auto",
        description="moments on disk: one per language, or one per distinct sampling; same bits; auto: the fewer",
    )

    @property
    def label(self) -> str:
        size = "" if self.segments_per_language == 16 else f"-{self.segments_per_language}"
        return f"{self.mode}{size}{'' if self.weights == 'shares' else f'-{self.weights}'}"


def _strength(value: Any) -> Any:
    if value == "auto" or (isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1):
        return value
    raise ValueError(f"is {value!r}; give auto, or a number above 0 and at most 1")


class DenseFit(FrozenSpec):
    """Linears that lead the compressed model back to the outputs of the dense one, before they are compressed."""

    mode: Literal["dense"] = "dense"
    strength: Annotated[Literal["auto"] | Annotated[float, Field(gt=0, le=1)], BeforeValidator(_strength)] = Field(
        "auto",
        description="how much of the step towards the dense model is taken; auto: half of what fits the tokens of "
        "every eighth segment best, for each linear",
    )

    @property
    def label(self) -> str:
        return self.mode if self.strength == "auto" else f"{self.mode}-{self.strength:g}"


class Budget(FrozenSpec):
    """How the amount of a method, its sparsity or its bits, is dealt out over the linears of a model."""

    rule: Literal["increase", "ramp"] = Field(
        "increase",
        description="increase: more where languages lose less by it, as trials on dense text predict; ramp: more from "
        "block to block",
    )
    objective: Literal["mean", "worst"] = Field(
        "mean", description="what is minimised: the mean of the languages' predicted increases, or the worst"
    )
    bits: Annotated[float, Field(ge=2, le=8)] | None = Field(
        None, description="average bits per weight, which may lie between two widths; null: the method's own amount"
    )
    width: Annotated[float, Field(gt=0)] | None = Field(
        None, description="how far a linear may be from the average; null: 0.05 of sparsity, 1 bit"
    )
    segments_per_language: PositiveInt = Field(
        16, description="segments of each language for the trials; with dense statistics, those of the run are used"
    )
    sensitivity_segments: PositiveInt = Field(4, description="how many of these are used for gradients")

    @model_validator(mode="after")
    def _of_rule(self) -> "Budget":
        fields = type(self).model_fields
        of_trials = ("objective", "segments_per_language", "sensitivity_segments")
        idle = [name for name in of_trials if getattr(self, name) != fields[name].default]
        if idle and not self.tries:
            raise ValueError(f"rule {self.rule} tries nothing and has no {idle[0]}; leave it out")
        return self

    @property
    def tries(self) -> bool:
        """Whether amounts are tried on dense text first."""
        return self.rule == "increase"

    @property
    def label(self) -> str:
        parts: list[str] = [self.rule]
        parts += [] if self.objective == "mean" else [self.objective]
        parts += [] if self.bits is None else [f"{self.bits:g}bit"]
        return "-".join(parts)

    def field(self, method: Method) -> str:
        """Return the name of the method's field that is dealt out, ``sparsity`` or ``bits``.

        Raises ValueError where the method has none, or the average is none that it can have.
        """
        field = amount_field(method, bits=self.bits is not None)
        if field is None:
            wanted = "bits" if self.bits is not None else "sparsity of single weights and no bits"
            raise ValueError(f"method {method.label} has no {wanted} to deal out")
        own = getattr(method, field)
        if self.bits is not None and own not in (math.floor(self.bits), math.ceil(self.bits)):
            raise ValueError(f"the method's bits: {own} are not next to {self.bits:g}; give the method a number beside")
        return field

    def check(self, method: Method) -> None:
        """Raise ValueError where the method's amount cannot be dealt out as the fields say."""
        if self.rule == "ramp" and self.field(method) == "bits":
            if self.mean(method).is_integer():
                raise ValueError(f"a ramp to {self.mean(method):g} bits is level; give bits between two widths, as 3.5")
            if self.width is not None:
                raise ValueError("a ramp of bits is between the two widths beside their average; leave width out")
            return
        self.tried(method)

    def mean(self, method: Method) -> float:
        """Return the amount on average over the weights."""
        return self.bits if self.bits is not None else float(getattr(method, self.field(method)))

    def reach(self, method: Method) -> float:
        """Return how far from the average the amount of a linear may be."""
        if self.width is not None:
            return self.width
        return 1.0 if self.field(method) == "bits" else 0.05

    def tried(self, method: Method) -> list[float]:
        """List the amounts of which trials tell what they cost, ascending; whole bits, or both ends and the average.

        Raises ValueError where there are not at least two.
        """
        mean, reach = self.mean(method), self.reach(method)
        low, high = round(mean - reach, 9), round(mean + reach, 9)
        if self.field(method) == "bits":
            whole = [float(bits) for bits in range(2, 9) if low <= bits <= high]
            if len(whole) < 2:
                raise ValueError(f"within {reach:g} of {mean:g} bits there are not two widths; take a larger width")
            return whole
        if low < 0 or high >= 1:
            raise ValueError(f"sparsity {low:g} to {high:g} is not within 0 and 1; take a smaller width")
        return [low, mean, high]


def _or_plain(field: str, plain: str, key: str, values: tuple[str, ...], value: Any) -> Any:
    """Read a field whose values are ``plain``, which is None, and others with fields of their own, told by ``key``."""
    named = value.get(key, values[0]) if isinstance(value, Mapping) else value
    if isinstance(named, str) and named not in (plain, *values):
        raise ValueError(f"unknown {field} {named!r}; there are {', '.join((plain, *values[:-1]))} and {values[-1]}")
    if named != plain:
        return {key: value} if isinstance(value, str) else value
    if isinstance(value, Mapping) and len(value) > 1:
        raise ValueError(f"{plain} {field} has no field {next(one for one in value if one != key)!r}")
    return None


def _plainly(plain: str) -> PlainSerializer:
    return PlainSerializer(lambda value: plain if value is None else value.model_dump())


StatisticsField = Annotated[
    DenseStatistics | None,
    BeforeValidator(lambda value: _or_plain("statistics", PROPAGATED, "mode", ("dense",), value)),
    _plainly(PROPAGATED),
]
FitField = Annotated[
    DenseFit | None,
    BeforeValidator(lambda value: _or_plain("fit_to", PROPAGATED, "mode", ("dense",), value)),
    _plainly(PROPAGATED),
]
BudgetField = Annotated[
    Budget | None,
    BeforeValidator(lambda value: _or_plain("budget", UNIFORM, "rule", ("increase", "ramp"), value)),
    _plainly(UNIFORM),
]
