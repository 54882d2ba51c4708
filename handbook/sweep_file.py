"""docs/sweep-file.md: every field of a sweep file, from the specs, the methods and the samplings themselves."""

import dataclasses
import inspect
import re
import sys
import textwrap
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from handbook.markdown import bounds_text, table, type_text, value_text
from mbs_ray.languages.sampling_registry import SAMPLINGS
from mbs_ray.languages.samplings import Sampling
from mbs_ray.methods import METHODS, Method
from mbs_ray.methods.grid import Quantization
from mbs_ray.methods.sparsity import Pruning
from mbs_ray.run.modes import PROPAGATED, UNIFORM, Budget, DenseFit, DenseStatistics
from mbs_ray.run.spec import EvaluationSpec, RunSpec
from mbs_ray.run.sweep_spec import LayoutSpec, SweepSpec

_EXAMPLE = Path(__file__).parents[1] / "jobs" / "sweeps" / "demo.yaml"
_NAMES: Mapping[object, str] = {
    Method: "[method](#methods)",
    Sampling: "[sampling](#samplings)",
    EvaluationSpec: "[evaluation set](#evaluation-sets)",
    DenseStatistics: "[dense statistics](#dense-statistics)",
    Budget: "[budget](#budget)",
    DenseFit: "[fit to the dense model](#fit-to-the-dense-model)",
    LayoutSpec: "[layout](#layout)",
}
#: Fields that are None inside, but nobody writes it so.
_PLAIN = {"statistics": PROPAGATED, "fit_to": PROPAGATED, "budget": UNIFORM}
#: Fields that have no description in the specs.
_DESCRIPTIONS = {
    "method": "how a linear is compressed",
    "sampling": "how many segments each language gets",
    "mode": "tells a mapping from `propagated`, which has no other field",
}


def sweep_file() -> str:
    """Return the page."""
    own = [name for name in SweepSpec.model_fields if name != "run"]
    parts = [
        "# The sweep file\n",
        _paragraph(
            "Every field of the YAML that `mbs sweep` and `mbs plan` read. This page is made from the code by "
            "`make docs`; a test compares the two. A first example is in [Your first sweep](first-sweep.md), more "
            "are in [jobs/sweeps](../jobs/sweeps)."
        ),
        _example(),
        _paragraph(
            "The fields of the sweep and of a run stand side by side at the top level. A field of a run that has "
            "several values goes under `grid` as a list: the sweep makes one run for every combination, and the last "
            "field varies fastest. Relative folders are relative to the sweep file. An unknown field is an error that "
            "lists the known ones."
        ),
        "## The sweep\n",
        _spec_table(SweepSpec, own),
        "### Layout\n",
        _paragraph(
            "`layout: auto`, or a mapping. [On a cluster](cluster.md#stages-and-replicas) says when to use which."
        ),
        _spec_table(LayoutSpec),
        "## A run\n",
        _paragraph("Required: `model`, `corpus`, `method` and `sampling`, each at the top level or in the grid."),
        _spec_table(RunSpec),
        "### Corpora\n",
        _paragraph(
            "`corpus: FOLDER`, or a mapping: `{folder: FOLDER, text_column: content}` names the field or column that "
            "holds the text, `{folder: FOLDER, chat: packed}` says that it holds conversations, in column `messages` "
            "where none is named, which go through the tokenizer's chat template. `chat` is `packed` or "
            "`one_per_segment`; [conversations](chat.md) says what each does. A data set of the hub has `dataset` in "
            "place of `folder`, and also the fields `revision`, `split`, `config` and `data_files`. The corpus of an "
            "evaluation set is written in the same way."
        ),
        "### Evaluation sets\n",
        _paragraph(
            "`evaluation: {NAME: {corpus: FOLDER}}`. The name of the first set does not appear in the names of its "
            "metrics; the names of the others do ([metrics](metrics-and-files.md))."
        ),
        _spec_table(EvaluationSpec),
        "### Dense statistics\n",
        _paragraph(
            "`statistics: dense` takes the defaults; a mapping changes them. [Statistics](statistics.md) explains both "
            "modes."
        ),
        _spec_table(DenseStatistics),
        "### Fit to the dense model\n",
        _paragraph(
            "`fit_to: dense` takes the default; a mapping changes it. [Fit to the dense model](fit-to-dense.md) says "
            "what it does and when it helps."
        ),
        _spec_table(DenseFit),
        "### Budget\n",
        _paragraph(
            "`budget: increase` or `budget: ramp` takes the defaults; a mapping with `rule` changes them. "
            "[Budgets](budgets.md) says what they do and when they help."
        ),
        _spec_table(Budget),
        "## Methods\n",
        _paragraph(
            "`method: wanda` takes the defaults, `method: {name: wanda, sparsity: 0.6}` changes them; on a command "
            "line that is `--method wanda:sparsity=0.6`. [Methods](methods.md) says what each one computes."
        ),
        _methods(),
        "## Samplings\n",
        _paragraph("`sampling: equal`, or a mapping with the fields: `sampling: {name: temperature, alpha: 0.3}`."),
        _samplings(),
    ]
    return "\n".join(parts)


def _paragraph(text: str) -> str:
    return textwrap.fill(text, 100, break_long_words=False, break_on_hyphens=False) + "\n"


def _example() -> str:
    """Return the demo's sweep file without its comments."""
    lines = [re.sub(r"\s*#.*", "", line) for line in _EXAMPLE.read_text(encoding="utf-8").splitlines()]
    return "```yaml\n" + "\n".join(line for line in lines if line) + "\n```\n"


def _spec_table(spec: type[BaseModel], names: list[str] | None = None) -> str:
    rows = []
    for name, field in spec.model_fields.items():
        if names is not None and name not in names:
            continue
        default = "required" if field.is_required() else _default(field.get_default(call_default_factory=True))
        kind = type_text(field.annotation, _NAMES) + bounds_text(field.metadata)
        if plain := _PLAIN.get(name):
            kind, default = (text.replace("`null`", f"`{plain}`") for text in (kind, default))
        rows.append([f"`{name}`", kind, default, field.description or _DESCRIPTIONS[name]])
    return table(["field", "type", "default", "description"], rows)


def _default(value: object) -> str:
    """Return a default as YAML has it; that of a nested spec is ``auto``, whose own fields all have defaults."""
    return value_text("auto" if isinstance(value, LayoutSpec) else value)


def _methods() -> str:
    """Return the methods, then their fields: those of pruning, of quantization, and all others."""
    listed = [
        [f"`{name}`", ", ".join(f"`{field}`" for field in _field_names(cls)), _first_line(cls)]
        for name, cls in METHODS.items()
    ]
    fields: dict[str, tuple[type[Any], dataclasses.Field[Any]]] = {}
    for cls in METHODS.values():
        for field in dataclasses.fields(cls):
            fields.setdefault(field.name, (cls, field))
    pruning, quantization = (set(_field_names(base)) for base in (Pruning, Quantization))
    return "\n".join(
        [
            table(["method", "fields", "what it is"], listed),
            "### Pruning\n",
            _method_fields(fields, pruning),
            _scopes(),
            "### Quantization\n",
            _method_fields(fields, quantization),
            "### Solvers\n",
            _method_fields(fields, fields.keys() - pruning - quantization),
        ]
    )


def _method_fields(fields: "dict[str, tuple[type[Any], dataclasses.Field[Any]]]", names: Set[str]) -> str:
    rows = []
    for name, (cls, field) in fields.items():
        if name in names:
            users = ", ".join(f"`{method}`" for method, one in METHODS.items() if name in _field_names(one))
            shown, kind, default, description = _field_row(cls, field)
            rows.append([shown, kind, default, users, description])
    return table(["field", "type", "default", "of", "description"], rows)


def _scopes() -> str:
    pruning = {name: cls.scopes for name, cls in METHODS.items() if issubclass(cls, Pruning)}
    listed = "; ".join(f"`{name}`: {', '.join(f'`{scope}`' for scope in scopes)}" for name, scopes in pruning.items())
    return _paragraph(f"Scopes, the default first: {listed}.")


def _samplings() -> str:
    listed, fields = [], []
    for name, cls in SAMPLINGS.items():
        own = ", ".join(f"`{field}`" for field in _field_names(cls)) or "none"
        listed.append([f"`{name}`", own, _first_sentence(cls)])
        for field in dataclasses.fields(cls):
            shown, kind, default, description = _field_row(cls, field)
            fields.append([shown, kind, default, f"`{name}`", description])
    head = ["field", "type", "default", "of", "description"]
    return table(["sampling", "fields", "what it is"], listed) + "\n" + table(head, fields)


def _field_row(cls: type[Any], field: "dataclasses.Field[Any]") -> list[str]:
    """Return name, type, default and description of a field of a method or sampling."""
    owner = next(base for base in cls.__mro__ if field.name in inspect.get_annotations(base))
    kind = type_text(inspect.get_annotations(owner)[field.name], _NAMES)
    default = "required" if field.default is dataclasses.MISSING else value_text(field.default)
    if field.default is None and "`null`" not in kind:
        default = "the method's own"
    return [f"`{field.name}`", kind, default, field_description(cls, field.name)]


def field_description(cls: type[Any], name: str) -> str:
    """Return what the docstrings say of a field, ``name: text`` up to the next field or paragraph.

    A base class comes first: its words hold for all that share the field. Empty where none says anything.
    """
    names = "|".join(map(re.escape, _field_names(cls)))
    for owner in reversed(cls.__mro__):
        for paragraph in inspect.cleandoc(owner.__doc__ or "").split("\n\n"):
            pieces = re.split(rf"(?:^|(?<=\. ))({names}): ", " ".join(paragraph.split()))
            said = dict(zip(pieces[1::2], pieces[2::2], strict=True))
            if name in said:
                return said[name].strip().removesuffix(".")
    return ""


def _first_line(cls: type[Any]) -> str:
    """Return what the method's module says of itself."""
    return (sys.modules[cls.__module__].__doc__ or "").splitlines()[0].removesuffix(".")


def _first_sentence(cls: type[Any]) -> str:
    text = " ".join(inspect.cleandoc(cls.__doc__ or "").split("\n\n")[0].split())
    return re.split(r": see |(?<=[a-z)\d])\.(?= [A-Z]|$)", text)[0]


def _field_names(cls: type[Any]) -> list[str]:
    return [field.name for field in dataclasses.fields(cls)]
