"""docs/cli.md: every command with its options and examples, from the command line itself."""

import re
import textwrap
from typing import Any

import typer

from handbook.markdown import table, type_text, value_text
from mbs_ray.cli import app

_LONG = 10  # rows of a table above which it is folded
_HEAD = """# The command line

Every command with its arguments and options. This page is made from the code by `make docs`; a test
compares the two. `mbs COMMAND --help` says the same in a terminal.

A bad input ends with one line that names the file, field or language, and exit code 2. Every
command that writes prints where; the same command again resumes, or finds nothing left to do.
"""


def command_line() -> str:
    """Return the page."""
    commands: dict[str, Any] = vars(typer.main.get_command(app))["commands"]
    listed = [[f"[`mbs {name}`](#mbs-{name})", _paragraphs(command)[0]] for name, command in commands.items()]
    parts = [_HEAD, _folded_if_long(table(["command", "what it does"], listed), 0, "")]
    for name, command in commands.items():
        parts += [f"## mbs {name}\n", *(f"{_filled(text)}\n" for text in _paragraphs(command))]
        parts.append("```\n" + "\n".join(_examples(name, command.epilog or "")) + "\n```\n")
        rows = [_parameter(parameter) for parameter in parameters(command)]
        options = table(["argument or option", "value", "default", "meaning"], rows)
        parts.append(_folded_if_long(options, len(rows), f"{len(rows)} arguments and options"))
    return "\n".join(parts)


def parameters(command: Any) -> list[Any]:
    """Return arguments and options of a command but ``--help``, those too that it makes when it is chosen."""
    context = command.make_context(command.name, [], resilient_parsing=True)
    return [one for one in command.get_params(context) if one.opts != ["--help"]]


def _paragraphs(command: Any) -> list[str]:
    """Return the docstring of a command as paragraphs of one line."""
    return [" ".join(part.split()) for part in command.help.split("\n\n")]


def _examples(name: str, epilog: str) -> list[str]:
    """Return the commands of an epilog, one a line, what is said beside them as comments."""
    pieces = re.split(rf"(?=mbs {name}\b)|\s{{2,}}", epilog.removeprefix("Example: "))
    lines = [piece.strip(" ()").removesuffix(" or:").strip() for piece in pieces if piece]
    lines = [line for line in lines if line not in ("", "or:", "or one run against its dense model:")]
    return [_broken(line) if line.startswith("mbs ") else f"# {line}" for line in lines]


def _broken(command: str) -> str:
    """Return the command in lines that a page shows without a scroll bar."""
    return " \\\n    ".join(textwrap.wrap(command, 86, break_long_words=False, break_on_hyphens=False))


def _parameter(parameter: Any) -> list[str]:
    option = parameter.opts[0].startswith("-")
    shown = f"`{parameter.opts[0] if option else parameter.metavar or parameter.name.upper()}`"
    kind = type_text(parameter.type_descriptor.annotation)
    kind += f" ≥ {parameter.min}" if getattr(parameter, "min", None) is not None else ""
    if getattr(parameter, "is_bool_flag", False):
        kind = "flag"
    if parameter.required:
        default = "required"
    elif parameter.default is None or kind == "flag":
        default = ""
    else:
        default = value_text(parameter.default)
    return [shown, kind, default, parameter.help or ""]


def _folded_if_long(shown: str, rows: int, summary: str) -> str:
    return f"<details><summary>{summary}</summary>\n\n{shown}\n</details>\n" if rows > _LONG else shown


def _filled(text: str) -> str:
    return textwrap.fill(text, 100, break_long_words=False, break_on_hyphens=False)
