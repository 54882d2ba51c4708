"""The options of `mbs compress` are the fields of RunSpec: none can be forgotten, none says something else."""

from pathlib import Path
from typing import Any

import pytest
import typer
from pydantic_core import PydanticUndefined

from mbs_ray.cli import app
from mbs_ray.cli.run_options import FORMS, OWN, run_fields
from mbs_ray.run.modes import PROPAGATED
from mbs_ray.run.spec import RunSpec
from mbs_ray.run.sweep_spec import validated

COMMAND: Any = typer.main.get_command(app).commands["compress"]  # type: ignore[attr-defined]
REQUIRED = {"--model": "m", "--corpus": "c", "--method": "wanda", "--out": "o"}


def parsed(**options: Any) -> dict[str, Any]:
    """Values of all options of `mbs compress`, by name; True stands for a flag."""
    given = REQUIRED | {f"--{name.replace('_', '-')}": value for name, value in options.items()}
    words = [word for name, value in given.items() for word in ([name] if value is True else [name, str(value)])]
    values: dict[str, Any] = COMMAND.make_context("compress", words).params
    return values


def spec(**options: Any) -> RunSpec:
    values = parsed(**options)
    run: RunSpec = validated(
        RunSpec, run_fields({name: values[name] for name in RunSpec.model_fields if name not in OWN})
    )
    return run


def options() -> dict[str, Any]:
    return {
        option.name: option
        for option in COMMAND.get_params(COMMAND.make_context("compress", ["--help"], resilient_parsing=True))
    }


def test_every_field_of_a_run_is_an_option_in_the_order_of_the_fields() -> None:
    fields = [name for name in RunSpec.model_fields if name not in OWN]
    assert list(options())[: len(fields)] == fields
    assert set(FORMS) <= set(fields) and set(RunSpec.model_fields) >= OWN
    assert {f"--{name.replace('_', '-')}" for name in fields} == {options()[name].opts[0] for name in fields}


@pytest.mark.parametrize("name", [name for name in RunSpec.model_fields if name not in OWN])
def test_an_option_says_what_its_field_says(name: str) -> None:
    option, field = options()[name], RunSpec.model_fields[name]
    assert field.description is not None
    assert option.help[1:].startswith(field.description[1:])
    own_default = FORMS[name].default if name in FORMS and isinstance(FORMS[name].default, str) else None
    default = field.get_default() if own_default is None else own_default
    assert option.required == (default is PydanticUndefined)
    if not option.required:
        assert option.default == default
    assert not option.secondary_opts


def test_without_options_a_run_is_the_spec_of_what_is_required() -> None:
    expected = validated(
        RunSpec, {"model": "m", "corpus": str(Path("c").resolve()), "method": "wanda", "sampling": "proportional"}
    )
    assert spec() == expected
    assert spec(statistics=PROPAGATED) == expected


@pytest.mark.parametrize(
    ("name", "said", "value"),
    [
        ("model", "hub/name", "hub/name"),
        ("revision", "main", "main"),
        ("distribution", "d.json", Path("d.json")),
        ("languages", "en,sw", "en,sw"),
        ("corpus", "/text", "/text"),
        ("method", "gptq:bits=3", {"name": "gptq", "bits": 3}),
        ("sampling", "counts:counts={en: 9}", {"name": "counts", "counts": {"en": 9}}),
        ("segments", 3, 3),
        ("sequence_length", 2, 2),
        ("seed", 7, 7),
        ("allow_repeat", True, True),
        ("compute_dtype", "bfloat16", "bfloat16"),
        ("microbatch", 3, 3),
        ("statistics", "dense:segments_per_language=4", {"mode": "dense", "segments_per_language": 4}),
        ("fit_to", "dense:strength=0.5", {"mode": "dense", "strength": 0.5}),
        ("true_sequential", True, True),
        ("per_language", True, True),
        ("keep", "metrics", "metrics"),
    ],
)
def test_an_option_fills_its_field_and_no_other(name: str, said: Any, value: Any) -> None:
    built, plain = spec(**{name: said}), spec()
    assert getattr(built, name) == getattr(plain.model_validate({**plain.model_dump(), name: value}), name)
    assert {one for one in RunSpec.model_fields if getattr(built, one) != getattr(plain, one)} == {name}


@pytest.mark.parametrize(("name", "low"), [("segments", 0), ("sequence_length", 1), ("seed", -1)])
def test_bounds_of_fields_are_those_of_their_options(name: str, low: int) -> None:
    with pytest.raises(Exception, match="greater than or equal to") as refused:
        parsed(**{name: low})
    assert refused.value.exit_code == 2  # type: ignore[attr-defined]


def test_evaluation_sets_are_options_of_the_command_itself() -> None:
    assert {"evaluation"} == OWN
    assert {"evaluate", "evaluation_segments"} <= options().keys()
