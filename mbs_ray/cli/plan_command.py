"""``mbs plan``: what a sweep needs, before it starts."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from mbs_ray.cli.cluster_arguments import with_cluster, without
from mbs_ray.cli.inputs import given, one_line_errors
from mbs_ray.cluster.cluster_options import ClusterOptions
from mbs_ray.errors import InputError

app = typer.Typer()


@app.command(
    epilog="Example: mbs plan jobs/sweeps/bloom-176b.yaml --gpus 8 --gpu-memory 80GB --host-memory 1TB --nvme 8TB   "
    "(or --cluster cluster.yaml, or --address auto; without any: this machine)"
)
@with_cluster(without("offload", "device", "wait"))
def plan(
    file: Annotated[Path, typer.Argument(help="Sweep file in YAML; of the model only config.json is needed.")],
    *,
    launcher: Annotated[
        Path | None, typer.Option("--cluster", help="Ray cluster launcher file with instance types that are known.")
    ] = None,
    nodes: Annotated[int, typer.Option("--nodes", min=1, help="Number of nodes like the one described.")] = 1,
    gpus: Annotated[int | None, typer.Option("--gpus", min=0, help="GPUs of a node; 0: CPUs alone.")] = None,
    gpu_memory: Annotated[str, typer.Option("--gpu-memory", help="Memory of a GPU.")] = "80GB",
    host_memory: Annotated[str, typer.Option("--host-memory", help="Memory of a node.")] = "512GB",
    nvme: Annotated[str, typer.Option("--nvme", help="Local disk of a node for activations.")] = "0",
    device: Annotated[
        str, typer.Option("--device", help="Kind of GPU, for its speed: A100, H100, H200, L40S, A10G.")
    ] = "A100",
    flops: Annotated[
        str | None, typer.Option("--flops", help="Operations per second of a device in the forward's data type: 300T.")
    ] = None,
    disk_bandwidth: Annotated[
        str | None, typer.Option("--disk-bandwidth", help="Speed of the disk that holds models and results: 2GB/s.")
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Time the model's shapes on this machine, for up to a minute.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder where results would go, to check its free space.")
    ] = None,
    cluster: ClusterOptions,
) -> None:
    """Predict memory, storage and time of a sweep before it starts, and find a layout that fits. Exit code 1 where the
    layout that is asked for does not fit."""
    with one_line_errors():
        from mbs_ray.cluster.activations.host_memory import LARGE_PAGES
        from mbs_ray.plan.hardware import Hardware, Node, cluster_file
        from mbs_ray.plan.units import parse_rate, parse_size

        if measure:
            # As in the processes of stages; torch reads it when it is loaded.
            os.environ.update(LARGE_PAGES)
        if sum(one is not None for one in (cluster.address, launcher, gpus)) > 1:
            raise InputError("give one of --address, --cluster and --gpus")
        hardware: Hardware | None = None
        if launcher is not None:
            hardware = cluster_file(launcher)
        elif gpus is not None:
            node = Node(
                gpus,
                parse_size("--gpu-memory", gpu_memory) if gpus else 0,
                parse_size("--host-memory", host_memory),
                parse_size("--nvme", nvme),
                cluster.threads or 8,
                device,
            )
            hardware = Hardware((node,) * nodes)
        rates = {
            "forward": None if flops is None else parse_rate("--flops", flops),
            "disk": None if disk_bandwidth is None else parse_rate("--disk-bandwidth", disk_bandwidth),
        }
        _show(file, hardware, cluster, rates, measure, out)


def _show(
    file: Path,
    hardware: Any,
    cluster: ClusterOptions,
    rates: dict[str, float | None],
    measure: bool,
    out: Path | None,
) -> None:
    from mbs_ray.plan.make_plan import advice
    from mbs_ray.plan.plan_view import closing_lines, tables
    from mbs_ray.plan.sweep_plan import plan_sweep
    from mbs_ray.run.sweep_spec import load_sweep

    sweep = load_sweep(file)
    layout = sweep.layout.model_copy(update=given(stages=cluster.stages, replicas=cluster.replicas))
    sweep = sweep.model_copy(update={"layout": layout, "nvme_path": cluster.nvme_path or sweep.nvme_path})
    planned = plan_sweep(sweep, hardware, cluster.address, cluster.threads, rates, measure, out)
    console = Console()
    for table in tables(planned):
        console.print(table)
    for line in closing_lines(planned):
        console.print(line, highlight=False, markup=False)
    if planned.problems:
        console.print(advice(planned), highlight=False, markup=False)
        raise typer.Exit(1)
    console.print(f"start it: mbs sweep {file} --out {out or './results'}", highlight=False, soft_wrap=True)
