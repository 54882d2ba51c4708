"""The options of ``mbs compress``, made of the fields of RunSpec: their types, bounds, defaults and descriptions."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from mbs_ray.cli.inputs import model_given
from mbs_ray.cli.named_spec import named_spec


@dataclass(frozen=True)
class Form:
    """The command-line form of a field whose type is no type of an option, and how it is ``read`` from there.

    ``example`` is shown in the help; ``default`` is the option's where the field has none or another form of it.
    """

    kind: Any = str
    read: Callable[[Any], Any] = str
    example: str = ""
    default: Any = inspect.Parameter.empty


#: By field; all other fields are options as they are.
FORMS: Mapping[str, Form] = MappingProxyType(
    {
        "model": Form(read=model_given),
        "languages": Form(example="en,sw,ta"),
        "corpus": Form(Path, lambda folder: str(folder.resolve())),
        "method": Form(read=named_spec, example="sparsegpt:sparsity=0.5 or gptq:bits=3"),
        "sampling": Form(
            read=named_spec,
            example="temperature:alpha=0.3, counts:counts={en: 9} or adaptive:objective=worst",
            default="proportional",
        ),
        "microbatch": Form(read=lambda text: int(text) if text.isdigit() else text),
        "statistics": Form(
            read=partial(named_spec, key="mode"), example="dense:segments_per_language=16", default="propagated"
        ),
        "budget": Form(
            read=partial(named_spec, key="rule"), example="increase, ramp or increase:bits=3.5", default="uniform"
        ),
        "fit_to": Form(
            read=partial(named_spec, key="mode"), example="dense or dense:strength=0.5", default="propagated"
        ),
    }
)
#: Fields for which the command has options of its own.
OWN = frozenset({"evaluation"})


class RunCommand(TyperCommand):
    """A command with an option for each field of RunSpec; finds the fields' values in ``context.obj``.

    The options are made when the command is chosen: RunSpec loads torch, for which ``mbs --help`` does not wait.
    """

    def get_params(self, ctx: Any) -> list[Any]:
        """List the options of the fields, then the command's own."""
        return [*run_options(), *super().get_params(ctx)]

    def invoke(self, ctx: Any) -> Any:
        """Move the values of the fields' options to ``ctx.obj``, and call the command."""
        ctx.obj = {option.name: ctx.params.pop(option.name) for option in run_options()}
        return super().invoke(ctx)


def run_fields(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return values of options as fields of RunSpec take them. Raises :class:`InputError` for one that is not read."""
    return {
        name: FORMS[name].read(value) if name in FORMS and value is not None else value
        for name, value in options.items()
    }


@cache
def run_options() -> tuple[Any, ...]:
    """Make one option for each field of RunSpec, in the order of the fields."""
    from mbs_ray.run.spec import RunSpec

    parameters = [_parameter(name, field) for name, field in RunSpec.model_fields.items() if name not in OWN]

    def command() -> None: ...

    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    app = typer.Typer(add_completion=False)
    app.command()(command)
    return tuple(typer.main.get_command(app).params)


def _parameter(name: str, field: Any) -> inspect.Parameter:
    form = FORMS.get(name, Form(kind=field.annotation))
    default = inspect.Parameter.empty if field.is_required() else field.get_default()
    help_text = f"{field.description[0].upper()}{field.description[1:]}"
    if form.example:
        help_text += f" ({form.example})"
    option = typer.Option(f"--{name.replace('_', '-')}", help=f"{help_text}.", min=_least(field))
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        annotation=Annotated[form.kind, option],
        default=default if form.default is inspect.Parameter.empty else form.default,
    )


def _least(field: Any) -> int | None:
    """Find the least integer that the field takes; None where it has no bound."""
    for bound in field.metadata:
        if (least := getattr(bound, "ge", None)) is not None:
            return int(least)
        if (below := getattr(bound, "gt", None)) is not None:
            return int(below) + 1
    return None
