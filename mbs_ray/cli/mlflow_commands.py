"""``mbs track | ui``: MLflow filled and opened."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from mbs_ray.cli.inputs import one_line_errors
from mbs_ray.cli.options import TakeOver
from mbs_ray.errors import InputError

app = typer.Typer()


@app.command(epilog="Example: mbs track ./results/bloom-560m   (or one run of it: …/runs/gptq-3bit-equal)")
def track(
    folder: Annotated[Path, typer.Argument(help="Folder of a sweep, or of one of its runs.")],
    tracking_uri: Annotated[
        str | None, typer.Option("--tracking-uri", help="Default: MLFLOW_TRACKING_URI, or the sweep's own database.")
    ] = None,
    take_over: TakeOver = False,
) -> None:
    """Send MLflow what a sweep measured and it does not have yet, such as while its server was away. Needs no Ray.

    Not while the sweep runs, which does this itself.
    """
    with one_line_errors():
        from mbs_ray.tracking.mlflow_client import default_tracking_uri
        from mbs_ray.tracking.replay import track_runs

        taken = dict(track_runs(folder, tracking_uri, take_over, typer.echo))
        for run, whole in taken.items():
            typer.echo(f"{run}: {'up to date' if whole else 'not taken whole; try again'}")
        # <out>/<sweep>, or <out>/<sweep>/runs/<run>.
        out = folder.resolve().parents[0 if (folder / "runs").is_dir() else 2]
        typer.echo(f"tracking: {tracking_uri or default_tracking_uri(out)}   (mbs ui {out})")
        if not all(taken.values()):
            raise typer.Exit(1)


@app.command(epilog="Example: mbs ui ./results --port 5000")
def ui(
    out: Annotated[Path, typer.Argument(help="The --out folder of earlier commands.")],
    host: Annotated[
        str, typer.Option("--host", help="Address to listen on; any but loopback lets others in.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="Port to listen on.")] = 5000,
) -> None:
    """Open MLflow on the results of earlier commands."""
    with one_line_errors():
        from mbs_ray.tracking.addresses import ui_links
        from mbs_ray.tracking.mlflow_client import DATABASE, database_uri

        uri = database_uri(out)
        if not (out / DATABASE).is_file():
            raise InputError(f"{out}: no {DATABASE}; give the --out of an earlier mbs compress or mbs sweep")
        address = f"http://{host}:{port}"
        typer.echo("\n".join([f"MLflow on {address} (stop with Ctrl-C)", *ui_links(uri, address)]))
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        # Looking at results needs none of MLflow's background workers.
        os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
        server = ["mlflow", "server", "--host", host, "--port", str(port), "--workers", "1"]
        os.execv(sys.executable, [sys.executable, "-m", *server, "--backend-store-uri", uri])
