"""``mbs allocate``."""

from collections.abc import Mapping
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from mbs_ray.cli.inputs import one_line_errors
from mbs_ray.cli.named_spec import named_spec
from mbs_ray.cli.options import Distribution, Languages, Sampling
from mbs_ray.languages.codes import language_name

app = typer.Typer()


@app.command(epilog="Example: mbs allocate --model bigscience/bloom-7b1 --sampling proportional --segments 256")
def allocate(
    model: Annotated[str, typer.Option("--model", help="Folder of a checkpoint, or a hub id.")],
    sampling: Sampling = "proportional",
    segments: Annotated[int, typer.Option("--segments", min=1, help="Segments in all.")] = 256,
    languages: Languages = "paper",
    distribution: Distribution = None,
    corpus: Annotated[
        str | None, typer.Option("--corpus", help="Folder with text, in which proportional:unit=tokens counts.")
    ] = None,
) -> None:
    """Show how many calibration segments each language gets. Needs no Ray, and the network only for a hub id."""
    from mbs_ray.driver.allocate import in_unit_of
    from mbs_ray.driver.begin_tokens import begin_sentence
    from mbs_ray.languages.distribution import parse_languages
    from mbs_ray.languages.sampling_registry import build_sampling, distribution_for

    with one_line_errors():
        built = build_sampling(named_spec(sampling))
        known = distribution_for(built, model, distribution)
        asked = parse_languages(languages, known)
        known = in_unit_of(built, known, model, asked, corpus)
        allocation = built.allocate(known, asked, segments)
        title = f"{segments} segments, {sampling}, {known.source if known else 'distribution unknown'}"
        console = Console()
        shares = known.shares(code for code in asked if code in known.amounts) if known else {}
        console.print(allocation_table(title, allocation, shares))
        again = f"mbs compress --model {model} --sampling '{sampling}' --segments {segments} …"
        console.print(f"calibrate with it: {again}", highlight=False, markup=False, soft_wrap=True)
        if sentence := begin_sentence(model):
            console.print(sentence, highlight=False, markup=False, soft_wrap=True)


def allocation_table(title: str, allocation: Mapping[str, int], shares: Mapping[str, float]) -> Table:
    """Segments of each language beside its share of the model's training data, where that is known."""
    table = Table(title=title)
    for heading in ("language", "name", "share of training", "segments", "share of segments"):
        table.add_column(heading, justify="left" if heading in ("language", "name") else "right")
    segments = sum(allocation.values())
    for code, count in allocation.items():
        share = f"{100 * shares[code]:.3f} %" if code in shares else ""
        table.add_row(code, language_name(code), share, str(count), f"{100 * count / segments:.3f} %")
    table.add_row("all", "", "", str(segments), "")
    return table
