"""Options that several commands share."""

from pathlib import Path
from typing import Annotated, Literal

import typer

Out = Annotated[Path, typer.Option("--out", help="Folder for everything: runs, figures, MLflow database.")]
Address = Annotated[
    str | None,
    typer.Option("--address", help="Ray cluster to work on; default: a local Ray, or the job's own."),
]
Stages = Annotated[
    int | None,
    typer.Option("--stages", min=1, help="Shards of the blocks; default: as many as GPUs, runs and blocks allow."),
]
Replicas = Annotated[
    int | None,
    typer.Option("--replicas", min=1, help="Actors that share a stage's segments; default: what GPUs are left."),
]
Languages = Annotated[str, typer.Option("--languages", help="'paper' (its 20), 'all', or codes: en,sw,ta")]
Distribution = Annotated[
    Path | None,
    typer.Option("--distribution", help="language_distribution.json; default: beside the model, or BLOOM's own."),
]
SAMPLING_HELP = (
    "monolingual[:language=en], equal, proportional, temperature:alpha=0.3, counts:counts={en: 9}, "
    "adaptive:objective=worst"
)
METHOD_HELP = (
    "magnitude, rtn, wanda, sparsegpt, gptq, sparsegpt+gptq, obc, obq, with fields: "
    "sparsegpt:sparsity=0.5 or gptq:bits=3"
)
Force = Annotated[bool, typer.Option("--force", help="Start although the plan says that it does not fit.")]
Threads = Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads of an actor.")]
Revision = Annotated[str | None, typer.Option("--revision", help="Of the hub repository.")]
SequenceLength = Annotated[int, typer.Option("--sequence-length", min=2, help="Tokens in a segment.")]
ComputeDtype = Annotated[str, typer.Option("--compute-dtype", help="auto, float32, bfloat16, float16; of the forward.")]
Tier = Literal["auto", "none", "host", "nvme"]
OffloadTier = Annotated[Tier, typer.Option("--offload", help="Where activations lie; none: on the device.")]
FileOffloadTier = Annotated[Tier | None, typer.Option("--offload", help="Default: as the file says.")]
NvmePath = Annotated[
    Path | None, typer.Option("--nvme-path", help="Folder on a local disk of every node, for --offload nvme or auto.")
]
TextColumn = Annotated[
    str, typer.Option("--text-column", help="Field or column of the corpus that holds the text: content, raw_content.")
]
