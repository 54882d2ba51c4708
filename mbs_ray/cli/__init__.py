"""The command line: ``mbs allocate | plan | compress | sweep | evaluate | similarity | report | …``."""

import typer

from mbs_ray.cli import allocate, measure, plan, results, sweep, track

app = typer.Typer(
    name="mbs",
    help="Multilingual Brain Surgeon on Ray: compress multilingual language models, language by language.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
for commands in (allocate, plan, sweep, measure, results, track):
    app.add_typer(commands.app)
