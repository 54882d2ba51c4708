"""Options that several commands share."""

from pathlib import Path
from typing import Annotated, Literal

import typer

Out = Annotated[Path, typer.Option("--out", help="Folder for everything: runs, figures, MLflow database.")]
Languages = Annotated[str, typer.Option("--languages", help="'paper' (its 20), 'all', or codes: en,sw,ta")]
Distribution = Annotated[
    Path | None,
    typer.Option("--distribution", help="language_distribution.json; default: beside the model, or BLOOM's own."),
]
Sampling = Annotated[
    str,
    typer.Option(
        "--sampling",
        help="monolingual[:language=en], equal, proportional[:unit=tokens], temperature:alpha=0.3, "
        "counts:counts={en: 9}, adaptive:objective=worst",
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Start even if the plan says that the sweep does not fit.")]
TakeOver = Annotated[
    bool,
    typer.Option(
        "--take-over",
        help="Take the sweep over from a command that died on another host: after 120 s without a sign of life.",
    ),
]
Revision = Annotated[str | None, typer.Option("--revision", help="Revision of the hub repository.")]
SequenceLength = Annotated[int, typer.Option("--sequence-length", min=2, help="Tokens in a segment.")]
ComputeDtype = Annotated[
    str, typer.Option("--compute-dtype", help="Data type of the forward: auto, float32, bfloat16, float16.")
]
TextColumn = Annotated[
    str, typer.Option("--text-column", help="Field or column of the corpus that holds the text: content, raw_content.")
]
Chat = Annotated[
    Literal["packed", "one_per_segment"] | None,
    typer.Option(
        "--chat", help="The corpus holds conversations, in column messages: packed, or one at the head of each segment."
    ),
]
