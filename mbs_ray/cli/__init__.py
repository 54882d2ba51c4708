"""The command line: ``mbs allocate | plan | compress | sweep | evaluate | similarity | report | …``.

Parses, calls the driver, prints tables; nothing is computed here. Begin with ``sweep_commands.py``.
Imports: ``driver``, ``plan``, ``tracking``, ``report``, ``cluster``, ``evaluation``, ``run``, ``model``, ``languages``.
"""

import io
import sys
from typing import Any

import typer

from mbs_ray.cli import (
    allocate_command,
    checkpoint_commands,
    mlflow_commands,
    plan_command,
    result_commands,
    sweep_commands,
)
from mbs_ray.cluster.garbage import collect_garbage_rarely


class _App(typer.Typer):
    """Commands whose words reach a terminal of any encoding."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        for stream in (sys.stdout, sys.stderr):
            # Old clusters and some containers print ASCII; what it lacks becomes a question mark, and no traceback.
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")
        collect_garbage_rarely()
        return super().__call__(*args, **kwargs)


app = _App(
    name="mbs",
    help="Multilingual Brain Surgeon on Ray: compress multilingual language models, language by language.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
for commands in (
    allocate_command,
    plan_command,
    sweep_commands,
    checkpoint_commands,
    result_commands,
    mlflow_commands,
):
    app.add_typer(commands.app)
