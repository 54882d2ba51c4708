"""The cluster options of commands: what of the cluster a command uses, passed to it as one ClusterOptions."""

import functools
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

import typer

from mbs_ray.cluster.cluster_options import ClusterOptions, Device

Tier = Literal["auto", "none", "host", "nvme"]
Address = Annotated[
    str | None,
    typer.Option("--address", help="Ray cluster to work on; default: a local Ray, or the job's own."),
]

Wait = Annotated[
    float | None,
    typer.Option(
        "--wait",
        min=0,
        help="Seconds to wait for nodes; default: on a cluster up to 300, while its autoscaler has some on their way.",
    ),
]

#: Of every field of ClusterOptions: annotation and default of its option.
CLUSTER: Mapping[str, tuple[Any, Any]] = MappingProxyType(
    {
        "stages": (
            Annotated[
                int | None,
                typer.Option(
                    "--stages", min=1, help="Shards of the blocks; default: as many as GPUs, runs and blocks allow."
                ),
            ],
            None,
        ),
        "replicas": (
            Annotated[
                int | None,
                typer.Option(
                    "--replicas", min=1, help="Actors that share a stage's segments; default: what GPUs are left."
                ),
            ],
            None,
        ),
        "threads": (Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads of an actor.")], None),
        "device": (
            Annotated[Device, typer.Option("--device", help="What actors compute on; auto: GPUs where there are any.")],
            "auto",
        ),
        "offload": (
            Annotated[Tier, typer.Option("--offload", help="Where activations lie; none: on the device.")],
            "auto",
        ),
        "nvme_path": (
            Annotated[
                Path | None,
                typer.Option("--nvme-path", help="Folder on a local disk of every node, for --offload nvme or auto."),
            ],
            None,
        ),
        "address": (Address, None),
        "wait": (Wait, None),
    }
)
FILE_DEVICE = Annotated[Device | None, typer.Option("--device", help="Default: as the file says.")], None
FILE_OFFLOAD = Annotated[Tier | None, typer.Option("--offload", help="Default: as the file says.")], None


def with_cluster(options: Mapping[str, tuple[Any, Any]] = CLUSTER) -> Callable[[Callable[..., None]], Any]:
    """Give a command these options in place of its parameter ``cluster``, and pass their values as one."""

    def decorated(command: Callable[..., None]) -> Any:
        @functools.wraps(command)
        def called(**values: Any) -> None:
            told = {name: values.pop(name) for name in options}
            if told.get("nvme_path") is not None:
                told["nvme_path"] = told["nvme_path"].absolute()
            command(**values, cluster=ClusterOptions(**told))

        called.__signature__ = _expanded(inspect.signature(command), options)  # type: ignore[attr-defined]
        return called

    return decorated


def without(*names: str) -> dict[str, tuple[Any, Any]]:
    """Select the options of all fields but these."""
    return {name: option for name, option in CLUSTER.items() if name not in names}


def _expanded(signature: inspect.Signature, options: Mapping[str, tuple[Any, Any]]) -> inspect.Signature:
    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters: list[inspect.Parameter] = []
    for one in signature.parameters.values():
        if one.name == "cluster":
            parameters += [
                inspect.Parameter(name, keyword, annotation=kind, default=default)
                for name, (kind, default) in options.items()
            ]
        else:
            parameters.append(one.replace(kind=keyword))
    return inspect.Signature(parameters)
